"""The blocked kernels against brute force and SciPy."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
import torch

from data_pipeline.errors import DataError
from trainer.executor import LocalExecutor
from trainer.transfer.search import neighbours
from trainer.word_vectors.procrustes import procrustes


def unit_rows(n: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return neighbours.unit_rows(torch.randn(n, width, generator=generator))


def test_procrustes_equals_scipy_and_recovers_a_planted_rotation() -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.randn(200, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, _ = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
    assert np.abs(procrustes(x, y).numpy() - expected).max() < 1e-8
    rotation = torch.from_numpy(scipy.stats.ortho_group.rvs(16, random_state=3))
    assert torch.allclose(procrustes(x, x @ rotation), rotation, atol=1e-8)
    with pytest.raises(DataError, match="cannot align"):
        procrustes(x, y[:, :8])


def test_top_softmax_equals_the_formula() -> None:
    queries, keys = unit_rows(2500, 20, 1), unit_rows(300, 20, 2)
    columns, weights = neighbours.top_softmax(queries, keys, 10, 0.1)
    cosines = (queries.double() @ keys.double().T).numpy()
    for row in range(0, 2500, 97):
        best = np.argsort(-cosines[row])[:10]
        assert set(columns[row].tolist()) == set(best.tolist())
        expected = scipy.special.softmax(cosines[row][columns[row]] / 0.1)
        assert np.abs(weights[row] - expected).max() < 1e-5


def projection(z: np.ndarray) -> np.ndarray:
    """Sparsemax by its definition: the nearest point of the simplex, found by bisection on the threshold."""
    tau = scipy.optimize.brentq(lambda t: np.maximum(z - t, 0).sum() - 1, z.min() - 1, z.max())
    return np.maximum(z - tau, 0)


@pytest.mark.parametrize("width", [3, 100])
def test_top_sparsemax_is_exact(width: int) -> None:
    """In width 3 supports are large, so the first 64 candidates are too few and the certificate must notice."""
    queries, keys = unit_rows(40, width, 1), unit_rows(900, width, 2)
    columns, weights = neighbours.top_sparsemax(queries, keys)
    cosines = (queries.double() @ keys.double().T).numpy()
    for row in range(40):
        dense = np.zeros(900)
        np.add.at(dense, columns[row], weights[row])
        assert np.abs(dense - projection(cosines[row])).max() < 1e-5
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-5


def test_top_sparsemax_with_fewer_keys_than_candidates() -> None:
    columns, weights = neighbours.top_sparsemax(unit_rows(5, 8, 1), unit_rows(2, 8, 2))
    assert columns.shape[1] <= 2
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("kernel", [lambda *a: neighbours.top_softmax(*a[:2], 10, 0.1, *a[2:]), neighbours.top_sparsemax])
def test_blocks_and_precision_do_not_change_the_result(kernel, monkeypatch) -> None:
    """Not a single bit, even with ties (rows that occur three times) and with rows that need more candidates."""
    keys = torch.cat([unit_rows(300, 12, 1)] * 3 + [unit_rows(9000, 12, 2)])
    queries = torch.cat([unit_rows(200, 12, 3), keys[:50]])
    columns, weights = kernel(queries, keys)
    for block_bytes in (1, 3_000_000, 1 << 30):
        again = kernel(queries, keys, LocalExecutor(block_bytes))
        assert (again[0] == columns).all()
        assert (again[1] == weights).all()
    for fast in (False, True):
        monkeypatch.setattr(neighbours, "is_bf16_fast", lambda fast=fast: fast)
        again = kernel(queries, keys)
        assert (again[0] == columns).all()
        assert (again[1] == weights).all()
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(4))
    moved = kernel(queries[order], keys)
    assert (moved[0] == columns[order.numpy()]).all()
    assert (moved[1] == weights[order.numpy()]).all()


def rounded_farthest(n: int, up: bool) -> torch.Tensor:
    """Unit rows whose first entries have nearly the largest bf16 rounding error, all in the same direction."""
    rows = torch.zeros(n, 940)
    rows[:, :900] = 2**-5 * (1 + 2**-8 + (1 if up else -1) * 2**-12)
    rows[torch.arange(n), 901 + torch.arange(n)] = (1 - (rows**2).sum(dim=1)).sqrt()
    return neighbours.unit_rows(rows)


def ordinary(n: int, seed: int) -> torch.Tensor:
    return unit_rows(n, 60, seed)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (ordinary(30, 1), ordinary(500, 2)),
        (rounded_farthest(4, True), torch.cat([rounded_farthest(30, True), rounded_farthest(30, False)])),
        (rounded_farthest(4, False), rounded_farthest(30, False)),
    ],
)
def test_no_key_outside_the_candidates_exceeds_their_bound(queries, keys) -> None:
    exact = (queries.double() @ keys.double().T).numpy()
    halves, lost = neighbours.to_bf16(keys)
    for columns, moved in ((halves, lost), (keys.T, 0.0)):
        index, outside = neighbours.propose_candidates(queries, columns, moved, 5)
        for row in range(len(queries)):
            others = np.setdiff1d(np.arange(len(keys)), index[row])
            assert len(others) == len(keys) - 5
            assert exact[row, others].max() <= outside[row]


@pytest.mark.parametrize("size", [7, 64, 1000, 1013])
def test_the_highest_are_found_among_the_best_groups(size: int) -> None:
    scores = torch.randn(50, size, generator=torch.Generator().manual_seed(size))
    for count in (1, 5, min(60, size), size):
        columns, lowest = neighbours.highest_scores(scores, count)
        expected = scores.topk(count, dim=1)
        assert (np.sort(columns, axis=1) == expected.indices.sort(dim=1).values.numpy()).all()
        assert (lowest == expected.values[:, -1].numpy()).all()


def test_ties_go_to_the_first_keys() -> None:
    keys = unit_rows(5, 8, 1).repeat(40, 1)
    columns, _ = neighbours.top_softmax(keys[:5], keys, 3, 0.1)
    assert columns.tolist() == [[i, i + 5, i + 10] for i in range(5)]
