"""The nearest rows against a sort of all scores, for any blocks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.mining import nearest as search
from trainer.mining.nearest import highest, nearest
from trainer.transfer.search.exact import normalise_rows, products


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    """Unit rows, a third of which occur twice, so that scores tie."""
    made = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))
    made[count - count // 3 :] = made[: count // 3]
    return normalise_rows(made)[0]


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 50), st.integers(0, 9), st.lists(st.integers(1, 90), max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_nearest_rows_are_those_of_a_sort_whatever_the_blocks(
    queries: int, count: int, k: int, seed: int, cuts: list[int]
) -> None:
    left, right = rows(queries, 6, seed), rows(count, 6, seed + 1)
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    found = nearest(left, [right[start:end] for start, end in pairwise(edges)], k)
    scores = products(left, right)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    kept = min(k, count)
    assert np.array_equal(found.rows[:, :kept].numpy(), order)
    assert np.array_equal(found.scores[:, :kept].numpy(), np.take_along_axis(scores, order, axis=1))
    assert (found.rows[:, kept:] == -1).all()
    assert torch.isneginf(found.scores[:, kept:]).all()


def test_parts_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = rows(50, 8, 1), rows(400, 8, 2)
    whole = nearest(left, right.split(64), 20)
    monkeypatch.setattr(search, "SCORES", 1000)
    assert torch.equal(nearest(left, right.split(64), 20).rows, whole.rows)


def test_ties_for_the_last_place_go_to_the_lower_column() -> None:
    found = highest(torch.tensor([[1.0, 2.0, 1.0, 1.0, 3.0]], dtype=torch.float64), 3)
    assert found.rows.tolist() == [[4, 1, 0]]
