"""Which rows are encoded together; requests take turns; a failure stays with its request."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serve.batching import Batcher, Budget, Encoder, measure_budget, next_pass
from cluster.serve.protocol import TokenIds

BUDGET = Budget(overhead=10.0, most=1000)
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def rows_of(lengths: list[int], first: int = 0) -> list[list[int]]:
    return [[first + number] * length for number, length in enumerate(lengths)]


def encode(rows: TokenIds, layers: int | None = None) -> np.ndarray:
    """Vectors that hold the number and length of their row, and the layers."""
    return np.array([[row[0], len(row), layers or 0] for row in rows], dtype=np.float32)


class Serving:
    """A batcher with one model."""

    def __init__(self, encode: Callable, budget: Budget = BUDGET) -> None:
        self.batcher, self.encoder = Batcher(), Encoder(encode, budget)

    def submit(self, rows: TokenIds, layers: int | None = None) -> Future:
        return self.batcher.submit(self.encoder, rows, layers)

    def close(self, drops_waiting: bool = False) -> None:
        self.batcher.close(drops_waiting)


class Recorder:
    """An encoder that remembers its passes. It waits in the first one until it is released."""

    def __init__(self) -> None:
        self.passes: list[list[list[int]]] = []
        self.began, self.released = threading.Event(), threading.Event()

    def __call__(self, rows: TokenIds, layers: int | None) -> np.ndarray:
        self.passes.append([list(row) for row in rows])
        self.began.set()
        assert self.released.wait(10)
        return encode(rows, layers)


@pytest.fixture
def batcher() -> Iterator[Callable[..., Serving]]:
    made: list[Serving] = []

    def make(encode: Callable, budget: Budget = BUDGET) -> Serving:
        made.append(Serving(encode, budget))
        return made[-1]

    yield make
    for one in made:
        one.close()


@settings(deadline=None)
@given(st.lists(st.tuples(lengths, st.sampled_from([None, 2, 4])), min_size=1, max_size=6), st.integers(8, 60))
def test_each_request_gets_its_own_vectors_in_order(requests, overhead) -> None:
    batcher = Serving(encode, Budget(overhead=overhead, most=300))
    futures = [batcher.submit(rows_of(lengths, 100 * n), layers) for n, (lengths, layers) in enumerate(requests)]
    for number, ((lengths, layers), future) in enumerate(zip(requests, futures, strict=True)):
        assert np.array_equal(future.result(10), encode(rows_of(lengths, 100 * number), layers))
    batcher.close()


@settings(deadline=None)
@given(st.lists(lengths, min_size=2, max_size=6), st.integers(8, 60))
def test_a_pass_keeps_within_its_budget_and_has_little_padding(requests, overhead) -> None:
    sizes: list[list[int]] = []

    def recording(rows: TokenIds, layers: int | None) -> np.ndarray:
        sizes.append([len(row) for row in rows])
        return encode(rows, layers)

    budget = Budget(overhead=overhead, most=300)
    batcher = Serving(recording, budget)
    for future in [batcher.submit(rows_of(lengths)) for lengths in requests]:
        future.result(10)
    batcher.close()
    assert sum(map(len, sizes)) == sum(map(len, requests))
    for size in sizes:
        padded = len(size) * max(size)
        assert len(size) == 1 or padded <= budget.of_pass
        assert padded - sum(size) <= overhead * len(size)


@pytest.mark.parametrize("length", [5, 40])
def test_a_short_request_does_not_wait_for_anothers_thousand_texts(batcher, length) -> None:
    """It begins the next pass, whether or not the other's texts have a length at which they can join it."""
    recorder = Recorder()
    serving = batcher(recorder)
    many = serving.submit(rows_of([length] * 1000))
    assert recorder.began.wait(10)
    short = serving.submit([[7777] * 6])
    recorder.released.set()
    short.result(10)
    many.result(10)
    assert recorder.passes[1][0] == [7777] * 6
    assert len(recorder.passes[0]) * length <= BUDGET.of_request < BUDGET.of_pass


def test_short_requests_of_many_share_a_pass(batcher) -> None:
    recorder = Recorder()
    serving = batcher(recorder)
    first = serving.submit([[1]])
    assert recorder.began.wait(10)
    futures = [serving.submit([[number] * 3]) for number in range(30)]
    recorder.released.set()
    for future in (first, *futures):
        future.result(10)
    assert [len(rows) for rows in recorder.passes] == [1, 30]


def test_the_rows_of_a_cancelled_request_are_not_encoded(batcher) -> None:
    recorder = Recorder()
    serving = batcher(recorder)
    first, second = serving.submit([[1]]), serving.submit([[2] * 30])
    assert recorder.began.wait(10)
    third = serving.submit([[3]])
    assert second.cancel()
    recorder.released.set()
    assert np.array_equal(third.result(10), encode([[3]]))
    assert first.done()
    assert [[2] * 30] not in recorder.passes


def test_a_row_that_fails_fails_its_request_alone(batcher) -> None:
    def failing(rows: TokenIds, layers: int | None) -> np.ndarray:
        if any(row[0] >= 1000 for row in rows):
            raise MemoryError("out of memory")
        return encode(rows, layers)

    serving = batcher(failing)
    bad = serving.submit([[1], [1001], [2], [1002]])
    good = [serving.submit([[number]]) for number in range(20)]
    assert isinstance(bad.exception(10), MemoryError)
    for number, future in enumerate(good):
        assert np.array_equal(future.result(10), encode([[number]]))
    assert np.array_equal(serving.submit([[5]]).result(10), encode([[5]]))


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    recorder = Recorder()
    batcher = Serving(recorder)
    futures: list[Future] = [batcher.submit(rows_of([30, 2, 9])) for _ in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    recorder.released.set()
    closing.join(10)
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit([[1]])


def test_closing_at_once_drops_what_waits() -> None:
    recorder = Recorder()
    batcher = Serving(recorder)
    first = batcher.submit([[1]])
    assert recorder.began.wait(10)
    later = [batcher.submit([[number] * 30] * 100) for number in range(5)]
    closing = threading.Thread(target=batcher.close, args=(True,))
    closing.start()
    while not all(future.cancelled() for future in later):
        time.sleep(0.01)
    recorder.released.set()
    closing.join(10)
    assert not closing.is_alive()
    assert np.array_equal(first.result(0), encode([[1]]))
    assert len(recorder.passes) == 1


def test_closing_at_once_drops_the_rest_of_a_request_that_is_being_encoded() -> None:
    recorder = Recorder()
    batcher = Serving(recorder)
    large = batcher.submit([[1] * 30] * 1000)
    assert recorder.began.wait(10)
    closing = threading.Thread(target=batcher.close, args=(True,))
    closing.start()
    while not large.cancelled():
        time.sleep(0.01)
    recorder.released.set()
    closing.join(10)
    assert not closing.is_alive()
    assert len(recorder.passes) == 1


def test_a_request_without_rows_is_refused(batcher) -> None:
    serving = batcher(encode)
    with pytest.raises(ValueError, match="no rows"):
        serving.submit([])
    assert np.array_equal(serving.submit([[5]]).result(10), encode([[5]]))


def test_no_pass_exceeds_the_bound_of_the_settings(batcher) -> None:
    sizes: list[int] = []

    def recording(rows: TokenIds, layers: int | None) -> np.ndarray:
        sizes.append(len(rows) * max(map(len, rows)))
        return encode(rows, layers)

    serving = batcher(recording, measure_budget(encode, longest=512, most=64))
    for future in [serving.submit([[number] * 10] * 20) for number in range(10)]:
        future.result(10)
    assert max(sizes) <= 64


@pytest.mark.parametrize(
    ("fixed", "per_token", "sizes"),
    [(0.02, 0.0005, (40, 160, 360)), (0.001, 0.001, (8, 32, 72)), (0.02, 0.0, (24784, 16384, 16384))],
)
def test_the_budget_follows_from_the_time_of_a_pass_without_tokens(fixed, per_token, sizes, monkeypatch) -> None:
    clock = [0.0]

    def timed(rows: TokenIds, layers: int | None) -> np.ndarray:
        clock[0] += fixed + per_token * sum(map(len, rows))
        return encode(rows, layers)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    budget = measure_budget(timed, longest=512, most=16384)
    assert (budget.overhead, budget.of_request, budget.of_pass) == pytest.approx(sizes, rel=0.1)


def test_without_requests_there_is_no_pass() -> None:
    assert next_pass([]) == []


def test_models_take_turns_and_share_no_pass(batcher) -> None:
    recorder = Recorder()
    serving = batcher(recorder)
    first = serving.submit([[1]])
    assert recorder.began.wait(10)
    other = Encoder(lambda rows, layers: -encode(rows, layers), BUDGET)
    futures = [serving.submit([[2]]), serving.batcher.submit(other, [[3]]), serving.submit([[4]])]
    recorder.released.set()
    found = [future.result(10) for future in (first, *futures)]
    assert [float(vectors[0, 0]) for vectors in found] == [1, 2, -3, 4]
    assert recorder.passes == [[[1]], [[2], [4]]]


def test_an_error_beside_the_model_fails_its_requests_and_the_next_are_answered() -> None:
    reports = iter([ValueError("no metrics")])

    def on_pass(report: object) -> None:
        for error in reports:
            raise error

    batcher, encoder = Batcher(on_pass), Encoder(encode, BUDGET)
    with pytest.raises(ValueError, match="no metrics"):
        batcher.submit(encoder, [[1]]).result(10)
    assert np.array_equal(batcher.submit(encoder, [[2]]).result(10), encode([[2]]))
    batcher.close()


class Layers:
    """An encoder of three layers; before the last two it calls a function, as a model does."""

    def __init__(self) -> None:
        self.between: Callable[[int], None] = lambda layer: None
        self.passes: list[TokenIds] = []

    def __call__(self, rows: TokenIds, layers: int | None) -> np.ndarray:
        self.passes.append(rows)
        number = len(self.passes)
        for _ in range(2):
            self.between(number)
        return encode(rows, layers)


def test_a_small_request_does_not_wait_for_the_end_of_a_pass_of_a_large_one(batcher) -> None:
    layers = Layers()
    serving = batcher(layers)
    small: list[Future] = []
    done_within: list[bool] = []

    def between(number: int) -> None:
        if number == 1:
            time.sleep(0.001)
            small.append(serving.submit([[500 + len(small)] * 3]))
            serving.batcher.encode_small()
            done_within.append(small[-1].done())

    layers.between = between
    large = serving.submit(rows_of([20] * 30))
    assert np.array_equal(large.result(10), encode(rows_of([20] * 30)))
    assert done_within[0]
    assert [float(future.result(10)[0, 0]) for future in small] == [500, 501]
    assert layers.passes[1] == [[500] * 3]


@pytest.mark.parametrize("large", [rows_of([40]), rows_of([3])])
def test_the_last_pass_of_a_request_is_not_left(batcher, large) -> None:
    """A single long text would wait for all others else."""
    layers = Layers()
    serving = batcher(layers)
    small: list[Future] = []

    def between(number: int) -> None:
        if number == 1 and not small:
            small.append(serving.submit([[7]]))
            serving.batcher.encode_small()
            assert not small[0].done()

    layers.between = between
    serving.submit(large).result(10)
    assert small[0].result(10)[0, 0] == 7
    assert layers.passes == [large, [[7]]]


def test_a_pass_is_left_for_no_longer_than_it_has_taken(batcher, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    layers = Layers()
    serving = batcher(layers)
    left: list[bool] = []

    def between(number: int) -> None:
        clock[0] += 1.0 if number == 1 else 1.5
        if number == 1:
            future = serving.submit([[7]])
            serving.batcher.encode_small()  # takes 3 s; the large pass has taken 1, then 2
            left.append(future.done())

    layers.between = between
    serving.submit(rows_of([20] * 30)).result(10)
    assert left == [True, False]


def test_a_small_request_that_fails_leaves_the_large_one_alone(batcher) -> None:
    def failing(rows: TokenIds, layers: int | None) -> np.ndarray:
        if rows[0][0] == 999:
            raise MemoryError("out of memory")
        if not small:
            small.append(serving.submit([[999]]))
            serving.batcher.encode_small()
        return encode(rows, layers)

    small: list[Future] = []
    serving = batcher(failing)
    assert np.array_equal(serving.submit(rows_of([20] * 30)).result(10), encode(rows_of([20] * 30)))
    assert isinstance(small[0].exception(10), MemoryError)


def test_a_request_that_is_answered_is_held_no_longer() -> None:
    """It holds its model, which a reload may replace while nobody asks."""

    class Model:
        def __call__(self, rows: TokenIds, layers: int | None) -> np.ndarray:
            return encode(rows, layers)

    one, model = Batcher(), Model()
    held = weakref.ref(model)
    one.submit(Encoder(model, BUDGET), [[1]]).result(10)
    del model
    for _ in range(500):
        if held() is None:
            break
        time.sleep(0.01)
    assert held() is None
    one.close()
