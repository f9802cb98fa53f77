"""The order: a bijection, by random access, the same for any number of workers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order.mixture import assign, temperature_weights
from data_pipeline.order.permutation import permute
from data_pipeline.order.plan import OrderPlan, Stream

KEYS = st.integers(0, 2**64 - 1)


@given(KEYS, st.integers(1, 3000))
def test_a_permutation_is_a_bijection(key: int, n: int) -> None:
    assert sorted(permute(key, n, np.arange(n)).tolist()) == list(range(n))


@given(KEYS, st.integers(1, 10**12), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_a_permutation_has_random_access_at_any_size(key: int, n: int, wanted: list[int]) -> None:
    index = np.array([i % n for i in wanted])
    together = permute(key, n, index)
    assert together.tolist() == [int(permute(key, n, np.array([i]))[0]) for i in index]
    assert ((together >= 0) & (together < n)).all()


def test_a_permutation_mixes() -> None:
    n = 10_000
    moved = permute(3, n, np.arange(n))
    assert abs(np.corrcoef(np.arange(n), moved)[0, 1]) < 0.03
    assert (np.diff(moved) == 1).sum() < 10


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(1, 2000))
@settings(max_examples=50)
def test_every_stream_stays_near_its_share(raw: list[float], n: int) -> None:
    weights = np.array(raw) / sum(raw)
    stream, position = assign(weights, np.arange(n))
    for number, weight in enumerate(weights):
        mine = stream == number
        assert position[mine].tolist() == list(range(mine.sum()))
        error = np.abs(np.cumsum(mine) - weight * np.arange(1, n + 1)).max()
        assert error <= (1 + len(weights) * weight) / 2 + 1e-6


@given(st.integers(0, 10**7))
@settings(max_examples=20)
def test_a_mixture_has_random_access(start: int) -> None:
    weights = np.array([0.62, 0.25, 0.13])
    together = assign(weights, np.arange(start, start + 50))
    for place in range(0, 50, 7):
        alone = assign(weights, np.array([start + place]))
        assert (together[0][place], together[1][place]) == (alone[0][0], alone[1][0])


def test_temperature_weights_follow_the_formula() -> None:
    found = temperature_weights({"el": 900, "en": 100}, 0.5)
    assert np.isclose(found["el"], 30 / 40)
    assert np.isclose(found["en"], 10 / 40)


GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=40)


@given(GROUPS, GROUPS, st.integers(0, 5), st.integers(1, 5))
@settings(max_examples=60)
def test_an_epoch_has_every_row_once(first: list[int], second: list[int], seed: int, window: int) -> None:
    streams = (Stream(name="a", group_rows=tuple(first)), Stream(name="b", group_rows=tuple(second)))
    plan = OrderPlan(streams=streams, batch=4, seed=seed, window_groups=window)
    slots = plan.lookup(np.arange(4 * (sum(first) + sum(second))))
    for number, stream in enumerate(streams):
        for epoch in range(2):
            rows = slots.row[(slots.stream == number) & (slots.epoch == epoch)]
            whole = stream.rows if len(rows) == stream.rows else len(rows)
            assert len(set(rows.tolist())) == whole


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 9), st.integers(0, 30))
@settings(max_examples=80)
def test_ranks_together_have_the_step_whatever_their_number(batch: int, world: int, micro: int, step: int) -> None:
    plan = OrderPlan(streams=(Stream(name="a", group_rows=(64, 64, 7)),), batch=batch, seed=1)
    parts = [plan.for_rank(step, rank, world, micro) for rank in range(world)]
    assert {len(part) for part in parts} == {plan.micro_steps(world, micro) * micro}
    real = sorted(
        (int(slot), int(row)) for part in parts for slot, row, w in zip(part.slot, part.row, part.weight, strict=True) if w
    )  # fmt: skip
    assert real == [(i, int(row)) for i, row in enumerate(plan.step(step).row)]


def test_golden_order() -> None:
    """Orders of runs that exist: a change here means that no run can be continued."""
    streams = (Stream(name="el", group_rows=(3, 3, 2), weight=0.7), Stream(name="en", group_rows=(4,), weight=0.3))
    slots = OrderPlan(streams=streams, batch=4, seed=5).lookup(np.arange(12))
    assert slots.stream.tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert slots.row.tolist() == [0, 1, 5, 2, 1, 0, 3, 4, 3, 6, 7, 2]
    assert permute(3, 10, np.arange(10)).tolist() == [2, 4, 0, 9, 3, 5, 6, 7, 8, 1]
