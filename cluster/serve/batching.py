"""Deals the waiting texts of all requests into forward passes, on one thread that never idles while texts wait.

The thread serves all models of a process: two passes at a time would only share the same cores or the same GPU.

Requests take turns. A pass begins with the shortest texts of the request whose turn it is, and texts of the others join while
the padding that they add costs less than a pass of their own. So a short request does not wait for another's thousand texts,
and no timer stands between a free model and waiting work.

A pass costs time without any token in it. `Budget` expresses this overhead in tokens, and the sizes of passes follow from it:
a request takes up to 4 times the overhead of a pass (four fifths of the model's full speed), all requests together up to 9
times (nine tenths). On a CPU these are some hundred tokens, on a GPU thousands.

A small request that comes during the pass of a request of many does not wait for its end either: between two layers of the
model the thread leaves the pass, encodes what is small, and goes on. It does so for as long as the pass itself has taken.

A pass that lasts far longer than it should, as a GPU that hangs, is not waited for: its requests and all that wait fail, and
so does what comes, until it ends.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.serve.protocol import TokenIds
from cluster.serve.request_record import RequestRecord

_log = logging.getLogger("scion.serve")
Vectors = NDArray[Any]
Encode = Callable[[TokenIds, int | None], Vectors]
"""Vectors [n, D] of n lists of token ids, by the first layers of the model, or by all."""
_WATCH_SECONDS = 1.0
_STUCK_SECONDS, _STUCK_TIMES = 30.0, 20.0
"""A pass is stuck after so many seconds, and so many times what its tokens should take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Sizes of forward passes, in padded tokens."""

    overhead: float
    """Tokens that could be encoded in the time that a pass costs without any."""
    most: int
    """Padded tokens of a pass, at most; a longer text is encoded alone."""
    token_seconds: float = 0.0
    """Time of a token in a large pass."""

    @property
    def of_request(self) -> int:
        return min(self.most, int(4 * self.overhead))

    @property
    def of_pass(self) -> int:
        return min(self.most, int(9 * self.overhead))

    def seconds(self, tokens: int) -> float:
        """Of a pass with so many padded tokens."""
        return (self.overhead + tokens) * self.token_seconds


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A model, and how much it takes at a time."""

    encode: Encode
    budget: Budget


def measure_budget(encode: Encode, longest: int, most: int) -> Budget:
    """Times a small and a larger pass.

    Args:
        longest: tokens of a text, at most.
        most: padded tokens of a pass, at most.
    """
    length = min(16, longest)
    small, large = (seconds(encode, [[0] * length] * rows) for rows in (1, 32))
    per_token = max(large - small, 0.02 * large) / (31 * length)  # a GPU takes as long for both
    return Budget(overhead=max(8.0, small / per_token - length), most=most, token_seconds=per_token)


def seconds(encode: Encode, rows: TokenIds) -> float:
    """The shortest of three times to encode the rows, after one that is not counted."""
    encode(rows, None)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        encode(rows, None)
        times.append(time.perf_counter() - began)
    return min(times)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request, or what is left of it."""

    encoder: Encoder
    rows: TokenIds
    layers: int | None
    left: list[int]
    """Places of rows that no pass has taken, the longest first."""
    record: RequestRecord
    is_small: bool
    """Whether its rows cost less than a pass without any."""
    vectors: dict[int, Vectors] = field(default_factory=dict)
    """By place, of the rows that are encoded."""
    future: Future[Vectors] = field(default_factory=Future)


_Pass = list[tuple[_Waiting, int]]
"""Requests and places of their rows."""


class ModelStuck(Exception):
    """A forward pass does not end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """A forward pass that has ended."""

    seconds: float
    """Without those in which it was left for small requests."""
    texts: int
    tokens: int
    padding: int
    """Tokens of padding."""
    waiting: int
    """Texts that no pass has taken."""


class Batcher:
    """Encodes the rows of requests, as many at a time as their model encodes well."""

    def __init__(self, on_pass: Callable[[PassReport], None] | None = None, on_idle: Callable[[], None] | None = None) -> None:
        """
        Args:
            on_pass: called after each pass.
            on_idle: called when no text waits any more, but some did after the last pass: their clients have left.
        """
        self._on_pass, self._on_idle = on_pass, on_idle
        self._running: _Pass = []
        """Of the running pass, and of the one that it interrupts."""
        self._deadline = math.inf
        """When the running pass is taken for stuck, by `time.perf_counter`."""
        self._reported = 0
        """Texts that waited by the last report."""
        self._may_be_left = False
        """Whether the running pass is one of many of a request."""
        self._began = self._away = 0.0
        """When it began, and for how many seconds it was left."""
        self._turns: deque[_Waiting] = deque()
        """Requests with rows left, in the order of their turns."""
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def submit(
        self, encoder: Encoder, rows: TokenIds, layers: int | None = None, record: RequestRecord | None = None
    ) -> Future[Vectors]:
        """The vectors [n, D] of n rows, in the future; notes in the record when its passes begin and end.

        The future gets the model's error if one of the rows cannot be encoded. Rows of a cancelled future are not encoded, if
        no pass has taken them.

        Raises:
            ValueError: there are no rows.
            RuntimeError: the batcher is closed.
            ModelStuck: the running pass does not end.
        """
        if not rows:
            raise ValueError("there are no rows to encode")
        if self.is_stuck:
            raise ModelStuck
        longest_first = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
        is_small = sum(map(len, rows)) <= encoder.budget.overhead
        waiting = _Waiting(encoder, rows, layers, longest_first, record or RequestRecord(), is_small)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher is closed")
            self._turns.append(waiting)
            self._changed.notify()
        return waiting.future

    def close(self, drops_waiting: bool = False) -> None:
        """Encodes what waits, or drops it; then ends the thread."""
        with self._changed:
            self._is_closed = True
            if drops_waiting:
                for waiting in (*self._turns, *dict(self._running)):
                    if waiting.left:
                        waiting.future.cancel()
            self._changed.notify()
        while self._thread.is_alive() and not self.is_stuck:
            self._thread.join(_WATCH_SECONDS)

    @property
    def is_stuck(self) -> bool:
        """Whether the running pass lasts far longer than it should."""
        return time.perf_counter() > self._deadline

    def _watch(self) -> None:
        """Raises `ModelStuck` in all requests while the running pass is stuck."""
        while not self._is_closed:
            time.sleep(_WATCH_SECONDS)
            if self.is_stuck:
                _log.error("a forward pass does not end: its requests and all that wait are answered with 503")
                with self._changed:
                    for waiting in (*dict(self._running), *self._turns):
                        if _starts(waiting.future):
                            waiting.future.set_exception(ModelStuck())

    def _run(self) -> None:
        """Takes and encodes passes until the batcher is closed and nothing waits; runs in a thread."""
        while taken := self._take():
            self._may_be_left = any(waiting.left for waiting in dict(taken))
            self._began, self._away = time.perf_counter(), 0.0
            self._serve(taken)
            with self._changed:  # requests that came during the pass are ahead of those that it served
                self._turns.extend(one for one in dict(taken) if one.left)
            taken.clear()  # its requests hold their model, which may be replaced before another one comes

    def _serve(self, taken: _Pass) -> None:
        """Encodes a pass, and raises any error in its requests: the thread must not end."""
        interrupted, self._running = self._running, [*self._running, *taken]
        try:
            self._encode_pass(taken)
        except Exception as error:  # beside the model, such as no memory for the vectors
            for waiting in dict(taken):
                if _starts(waiting.future):
                    waiting.future.set_exception(error)
        finally:
            self._running = interrupted

    def encode_small(self) -> None:
        """Encodes small requests in the midst of a pass of a large one; the model calls it between its layers."""
        if not (self._may_be_left and self._turns and threading.current_thread() is self._thread):
            return
        now = time.perf_counter()
        if self._away > now - self._began - self._away:
            return
        with self._changed:
            taken = next_pass([one for one in self._turns if one.is_small and not one.future.done()])
            self._turns = deque(one for one in self._turns if one.left)
        if taken:
            deadline, self._may_be_left = self._deadline, False
            self._serve(taken)
            self._deadline, self._may_be_left = deadline, True
            self._away += time.perf_counter() - now

    def _take(self) -> _Pass:
        """The rows of the next pass, as soon as there are any; none once the batcher is closed and has done its work."""
        with self._changed:
            while True:
                self._turns = deque(one for one in self._turns if not one.future.done())  # it failed, or is cancelled
                if self._turns or self._is_closed:
                    break
                if self._on_idle is not None and self._reported:
                    self._reported = 0
                    with suppress(Exception):  # the thread must not end
                        self._on_idle()
                self._changed.wait()
            taken = next_pass(self._turns)
            served = {id(one) for one, _ in taken}
            self._turns = deque(one for one in self._turns if id(one) not in served)
        return taken

    def _encode_pass(self, taken: _Pass) -> None:
        """Encodes a pass; if it fails, each half of it, down to the row that fails."""
        rows = [waiting.rows[place] for waiting, place in taken]
        padded = len(rows) * max(map(len, rows))
        first = taken[0][0]
        began, away = time.perf_counter(), self._away
        self._deadline = began + _STUCK_SECONDS + _STUCK_TIMES * first.encoder.budget.seconds(padded)
        for waiting, _ in taken:
            waiting.record.taken = waiting.record.taken or began
        try:
            vectors = first.encoder.encode(rows, first.layers)
        except Exception as error:  # any error of the model, such as running out of memory
            if len(taken) > 1:
                self._encode_pass(taken[: len(taken) // 2])
                self._encode_pass(taken[len(taken) // 2 :])
            elif _starts(taken[0][0].future):
                taken[0][0].future.set_exception(error)
            return
        finally:
            self._deadline = math.inf
        self._report(rows, padded, time.perf_counter() - began - (self._away - away))
        for (waiting, place), vector in zip(taken, vectors, strict=True):
            waiting.vectors[place] = vector
        for waiting in dict(taken):
            if len(waiting.vectors) == len(waiting.rows) and _starts(waiting.future):
                waiting.record.encoded = time.perf_counter()
                waiting.future.set_result(np.stack([waiting.vectors[place] for place in range(len(waiting.rows))]))

    def _report(self, rows: TokenIds, padded: int, seconds: float) -> None:
        if self._on_pass is not None:
            with self._changed:
                waiting = sum(len(one.left) for one in {*self._turns, *dict(self._running)})
            self._reported, tokens = waiting, sum(map(len, rows))
            self._on_pass(PassReport(seconds=seconds, texts=len(rows), tokens=tokens, padding=padded - tokens, waiting=waiting))


def _starts(future: Future[Vectors]) -> bool:
    """Whether the future still waits for a result; from here on it cannot be cancelled."""
    return not future.done() and future.set_running_or_notify_cancel()


def next_pass(turns: Sequence[_Waiting]) -> _Pass:
    """Takes rows from the requests for one pass, which all need the same layers of the same model.

    Empty if there are no requests; else it has the shortest row of the first one.
    """
    taken: _Pass = []
    longest = 0
    for waiting in turns:
        if (waiting.encoder, waiting.layers) != (turns[0].encoder, turns[0].layers):
            continue
        budget = waiting.encoder.budget
        own = 0
        while waiting.left:
            length = len(waiting.rows[waiting.left[-1]])
            if taken and not _joins(length, len(taken), longest, own, budget):
                break
            taken.append((waiting, waiting.left.pop()))
            longest, own = max(longest, length), own + length
        if (len(taken) + 1) * longest > budget.of_pass:
            break
    return taken


def _joins(length: int, rows: int, longest: int, own: int, budget: Budget) -> bool:
    """Whether a row of this length joins a pass of so many rows.

    Args:
        own: tokens of the row's request in the pass.
    """
    padded = (rows + 1) * max(longest, length)
    padding = padded - rows * longest - length
    return padded <= budget.of_pass and own + length <= budget.of_request and padding <= budget.overhead
