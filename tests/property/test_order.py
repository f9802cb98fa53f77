"""The order: a bijection, by random access, the same for any number of workers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import ConfigError
from data_pipeline.order.mixture import LAST_SLOT, assign, counts, quantise, temperature_weights
from data_pipeline.order.permutation import permute
from data_pipeline.order.row_order import Phase, RowOrder, Stream, order_step

KEYS = st.integers(0, 2**64 - 1)


@given(KEYS, st.integers(1, 3000))
def test_a_permutation_is_a_bijection(key: int, n: int) -> None:
    assert sorted(permute(key, n, np.arange(n)).tolist()) == list(range(n))


@given(KEYS, st.integers(1, 10**12), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_a_permutation_has_random_access_at_any_size(key: int, n: int, places: list[int]) -> None:
    index = np.array([i % n for i in places])
    together = permute(key, n, index)
    assert together.tolist() == [int(permute(key, n, np.array([i]))[0]) for i in index]
    assert ((together >= 0) & (together < n)).all()


@given(st.lists(KEYS, min_size=1, max_size=8), st.integers(1, 500), st.integers(0, 10**6))
def test_keys_may_differ_by_element(keys: list[int], n: int, start: int) -> None:
    index = (start + np.arange(len(keys))) % n
    alone = [int(permute(key, n, np.array([i]))[0]) for key, i in zip(keys, index, strict=True)]
    assert permute(np.array(keys, np.uint64), n, index).tolist() == alone


def test_a_permutation_mixes() -> None:
    n = 10_000
    order = permute(3, n, np.arange(n))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.03
    assert (np.diff(order) == 1).sum() < 10


WEIGHTS = st.lists(st.one_of(st.floats(1e-4, 1.0), st.just(0.0)), min_size=1, max_size=40).filter(any)


@given(WEIGHTS)
def test_weights_become_integers_that_sum_to_a_power_of_two(raw: list[float]) -> None:
    integers = quantise(np.array(raw))
    assert integers.sum() == 1 << 24
    assert ((integers > 0) == (np.array(raw) > 0)).all()
    assert np.abs(integers / 2**24 - np.array(raw) / sum(raw)).max() <= len(raw) / 2**24


@given(WEIGHTS, st.integers(1, 600))
@settings(max_examples=60)
def test_a_mixture_is_the_rows_in_order_of_their_due_times(raw: list[float], n: int) -> None:
    """By brute force in exact fractions: all due times up to far enough, sorted."""
    weights = quantise(np.array(raw))
    shares = [Fraction(int(weight), 1 << 24) for weight in weights]
    times = [
        ((place + Fraction(1, 2)) / share, number, place)
        for number, share in enumerate(shares)
        if share
        for place in range(int(share * (n + len(raw) + 2)) + 2)
    ]
    expected = [(number, place) for _, number, place in sorted(times)[:n]]
    stream, position = assign(weights, np.arange(n))
    assert list(zip(stream.tolist(), position.tolist(), strict=True)) == expected
    assert counts(weights, n).tolist() == [sum(number == k for number, _ in expected) for k in range(len(raw))]


@given(WEIGHTS, st.integers(1, 2000))
@settings(max_examples=50)
def test_every_stream_stays_near_its_share(raw: list[float], n: int) -> None:
    weights = quantise(np.array(raw))
    stream, _ = assign(weights, np.arange(n))
    for number, weight in enumerate(weights / 2**24):
        error = np.abs(np.cumsum(stream == number) - weight * np.arange(1, n + 1)).max()
        assert error <= (1 + len(weights) * weight) / 2 + 1e-6


@given(WEIGHTS, st.integers(0, LAST_SLOT - 60))
@settings(max_examples=60)
def test_a_mixture_has_random_access_up_to_the_last_slot(raw: list[float], start: int) -> None:
    weights = quantise(np.array(raw))
    stream, position = assign(weights, np.arange(start, start + 50))
    for place in range(0, 50, 7):
        alone = assign(weights, np.array([start + place]))
        assert (stream[place], position[place]) == (alone[0][0], alone[1][0])
    earlier = counts(weights, start)
    assert earlier.sum() == start
    for number in set(stream.tolist()):
        first = earlier[number]
        assert position[stream == number].tolist() == list(range(first, first + (stream == number).sum()))


def test_temperature_weights_follow_the_formula() -> None:
    weights = temperature_weights({"el": 900, "en": 100}, 0.5)
    assert np.isclose(weights["el"], 30 / 40)
    assert np.isclose(weights["en"], 10 / 40)


def two(first: int, second: int, **settings) -> RowOrder:  # type: ignore[no-untyped-def]
    streams = (Stream(name="a", rows=first, weight=0.7), Stream(name="b", rows=second, weight=0.3))
    return RowOrder(streams=streams, **{"batch": 4, "seed": 3} | settings)


STAGES = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(1, 3)), max_size=3)


def phases_of(raw: list[tuple[int, int, int]]) -> tuple[Phase, ...]:
    until = np.cumsum([steps for steps, _, _ in raw]).tolist()
    return tuple(Phase(until=end, weights=(a, b)) for end, (_, a, b) in zip(until, raw, strict=True))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 5), st.integers(1, 4), STAGES)
@settings(max_examples=80)
def test_an_epoch_has_every_row_once_through_all_stages(first: int, second: int, seed: int, window: int, raw) -> None:  # type: ignore[no-untyped-def]
    order = two(first, second, seed=seed, window=window, stages=phases_of(raw))
    slots = order.lookup(np.arange(3 * (first + second)))
    for number, stream in enumerate(order.streams):
        mine = slots.stream == number
        assert slots.epoch[mine].tolist() == (np.arange(mine.sum()) // stream.rows).tolist()
        for epoch in range(int(slots.epoch[mine].max(initial=0)) + 1):
            rows = slots.row[mine & (slots.epoch == epoch)]
            assert len(set(rows.tolist())) == len(rows) <= stream.rows
            assert ((rows >= 0) & (rows < stream.rows)).all()


@given(STAGES, st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), max_size=3), st.integers(0, 200))
@settings(max_examples=60)
def test_a_slot_is_found_without_those_before(raw, growth: list[tuple[int, int]], slot: int) -> None:  # type: ignore[no-untyped-def]
    ends = np.cumsum([steps for steps, _ in growth]).tolist()
    warmup = tuple(zip(ends, (batch for _, batch in growth), strict=True))
    order = two(150, 70, stages=phases_of(raw), warmup=warmup)
    together, alone = order.lookup(np.arange(slot + 1)), order.lookup(np.array([slot]))
    for name in ("step", "slot", "stream", "epoch", "row", "weight"):
        assert getattr(together, name)[slot] == getattr(alone, name)[0], name
    step, inside = int(alone.step[0]), int(alone.slot[0])
    assert order.sizes.offset(step) + inside == slot
    assert inside < order.sizes.size(step)
    assert order.step(step).row[inside] == alone.row[0]


@given(STAGES, st.integers(1, 40))
@settings(max_examples=40)
def test_passes_are_what_the_steps_read(raw, steps: int) -> None:  # type: ignore[no-untyped-def]
    order = two(150, 70, stages=phases_of(raw), warmup=((3, 2),))
    streams = np.concatenate([order.step(step).stream for step in range(steps)])
    row_counts = np.bincount(streams, minlength=2)
    expected = {stream.name: count / stream.rows for stream, count in zip(order.streams, row_counts.tolist(), strict=True)}
    assert order.passes(steps) == expected


@given(STAGES, st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), max_size=3), st.integers(1, 60))
@settings(max_examples=60)
def test_a_step_of_whole_steps_is_of_one_stream_and_skips_no_row(raw, growth: list[tuple[int, int]], steps: int) -> None:  # type: ignore[no-untyped-def]
    """Through warm-up and stages, by random access; each stream's rows come once before any comes twice."""
    ends = np.cumsum([count for count, _ in growth]).tolist()
    warmup = tuple(zip(ends, (batch for _, batch in growth), strict=True))
    order = two(41, 23, stages=phases_of(raw), warmup=warmup, whole_steps=True)
    parts = [order.step(step) for step in range(steps)]
    assert all(len(set(part.stream.tolist())) == 1 for part in parts)
    together = order.lookup(np.arange(order.sizes.offset(steps)))
    assert np.array_equal(together.row, np.concatenate([part.row for part in parts]))
    for number, stream in enumerate(order.streams):
        mine = together.stream == number
        assert together.epoch[mine].tolist() == (np.arange(mine.sum()) // stream.rows).tolist()
        for epoch in range(int(together.epoch[mine].max(initial=-1)) + 1):
            rows = together.row[mine & (together.epoch == epoch)].tolist()
            assert len(set(rows)) == len(rows)
    assert order.passes(steps) == {
        stream.name: float((together.stream == number).sum()) / stream.rows for number, stream in enumerate(order.streams)
    }


def test_whole_steps_are_shared_like_slots() -> None:
    order = two(300, 300, whole_steps=True)
    assert [int(order.step(step).stream[0]) for step in range(200)] == order_of_slots(200)


def order_of_slots(count: int) -> list[int]:
    return two(300, 300).lookup(np.arange(count)).stream.tolist()


def test_whole_steps_of_one_stream_are_what_its_slots_are() -> None:
    plain, whole = (
        RowOrder(streams=(Stream(name="a", rows=135),), batch=7, seed=1, whole_steps=each) for each in (False, True)
    )
    assert np.array_equal(plain.lookup(np.arange(300)).row, whole.lookup(np.arange(300)).row)


def test_a_step_is_as_large_as_the_warm_up_says() -> None:
    order = two(300, 300, warmup=((2, 3), (5, 6)), batch=10)
    assert [order.sizes.size(step) for step in range(7)] == [3, 3, 6, 6, 6, 10, 10]
    assert [order.sizes.offset(step) for step in range(8)] == [0, 3, 6, 12, 18, 24, 34, 44]


@pytest.mark.parametrize("warmup", [((0, 4),), ((5, 4), (5, 8)), ((5, 4), (3, 8))])
def test_a_warm_up_that_does_not_go_forward_is_refused(warmup) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="must rise"):
        two(300, 300, warmup=warmup)


def test_rows_are_spread_by_the_shuffle_and_reads_stay_bounded() -> None:
    order = RowOrder(streams=(Stream(name="a", rows=64 * 1000 + 13),), batch=64, seed=1)
    rows = order.lookup(np.arange(64 * 1000 + 13)).row
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.06
    for start in range(0, 64 * 960, 1024):
        assert len(set((rows[start : start + 1024] // 64).tolist())) == 16
    other = order.lookup(np.arange(len(rows), 2 * len(rows))).row
    assert (rows == other).mean() < 0.001


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 9), st.integers(0, 30))
@settings(max_examples=80)
def test_ranks_together_have_the_step_whatever_their_number(batch: int, world: int, micro: int, step: int) -> None:
    order = RowOrder(streams=(Stream(name="a", rows=135),), batch=batch, seed=1)
    parts = [order.for_rank(step, rank, world, micro) for rank in range(world)]
    assert {len(part) for part in parts} == {order.micro_steps(step, world, micro) * micro}
    real = sorted(
        (int(slot), int(row)) for part in parts for slot, row, w in zip(part.slot, part.row, part.weight, strict=True) if w
    )
    assert real == [(i, int(row)) for i, row in enumerate(order.step(step).row)]


@given(st.integers(1, 3), st.integers(0, 20), st.lists(st.integers(0, 12), max_size=3, unique=True))
@settings(max_examples=30, deadline=None)
def test_steps_that_are_looked_up_together_are_what_each_is_alone(seed: int, first: int, left_out: list[int]) -> None:
    """Across the edges of the warm-up and the stages, with gaps between steps."""
    order = two(300, 300, batch=20, warmup=((6, 3), (9, 6)), seed=seed)
    steps = [step for step in range(first, first + 150) if step - first not in left_out]
    together = list(order.steps(steps))
    assert len(together) == len(steps)
    for step, slots in zip(steps, together, strict=True):
        alone = order.step(step)
        for name in ("step", "slot", "stream", "epoch", "row", "weight"):
            assert getattr(slots, name).tolist() == getattr(alone, name).tolist(), (step, name)


def groups_read(order: RowOrder, world: int, steps: range) -> int:
    """The row groups that all ranks read for some steps; a rank reads each group once."""
    groups = 0
    for rank in range(world):
        parts = [order.for_rank(step, rank, world, micro=4) for step in steps]
        groups += len(
            {(s, row // 64) for part in parts for s, row in zip(part.stream.tolist(), part.row.tolist(), strict=True)}
        )
    return groups


@pytest.mark.parametrize("world", [1, 2, 8, 64])
def test_ranks_read_at_most_twice_the_rows_that_they_need(world: int) -> None:
    order = RowOrder(streams=(Stream(name="a", rows=10**6),), batch=2048, seed=1)
    steps = range(100, 104)
    assert groups_read(order, world, steps) * 64 <= 2 * len(steps) * order.batch


def test_a_rank_that_is_filled_up_reads_nothing_for_it() -> None:
    order = RowOrder(streams=(Stream(name="a", rows=10**6),), batch=13, seed=1)
    for rank in range(8):
        part = order.for_rank(3, rank, 8, micro=4)
        assert set(part.row[part.weight == 0].tolist()) <= set(part.row[part.weight > 0].tolist())


def test_one_rank_has_a_step_in_the_order_of_its_slots() -> None:
    order = two(300, 300, batch=20)
    assert order.for_rank(7, 0, 1, 20).row.tolist() == order.step(7).row.tolist()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=4))
def test_steps_that_are_skipped_are_left_out(gaps: list[tuple[int, int]]) -> None:
    skipped, at = [], 0
    for before, length in gaps:
        skipped.append((at + before, at + before + length))
        at = skipped[-1][1]
    remaining = [step for step in range(100) if not any(first <= step < last for first, last in skipped)]
    assert [order_step(step, tuple(skipped)) for step in range(len(remaining))] == remaining


def test_the_orders_of_earlier_runs_are_unchanged() -> None:
    """If this changes, no existing run can be resumed."""
    streams = (Stream(name="el", rows=8, weight=0.7), Stream(name="en", rows=200, weight=0.3))
    order = RowOrder(streams=streams, batch=4, seed=5, stages=(Phase(until=2, weights=(1, 3)),), warmup=((1, 3),))
    slots = order.lookup(np.arange(16))
    assert slots.step.tolist() == GOLDEN["step"]
    assert slots.stream.tolist() == GOLDEN["stream"]
    assert slots.row.tolist() == GOLDEN["row"]
    far = RowOrder(streams=(Stream(name="el", rows=10**9),), batch=512, seed=0).lookup(np.array([0, 10**6, 10**9, 10**11]))
    assert far.row.tolist() == GOLDEN["far"]
    assert permute(3, 10, np.arange(10)).tolist() == [2, 4, 0, 9, 3, 5, 6, 7, 8, 1]


GOLDEN = {
    "step": [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4],
    "stream": [1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1],
    "row": [8, 6, 21, 72, 112, 7, 36, 3, 74, 2, 1, 76, 0, 4, 5, 123],
    "far": [875361119, 229482077, 725221513, 779336381],
}
