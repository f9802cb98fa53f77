"""What the first rank requests of all ranks, from its clock, the driver and Ray."""

import time
from enum import IntFlag
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError

from trainer.config.train import TrainConfig

_CHECK_SECONDS = 5.0
"""Between questions to Ray Train about preemption: each is a round trip of all ranks."""


class Request(IntFlag):
    """Sent in the first all-reduce of a step; all ranks act on it after the step."""

    SAVE = 1
    STOP = 2
    CHECK_PREEMPTION = 4
    """Ask Ray Train whether a node is about to be taken away."""


class Requests:
    """Of the first rank; the others use `is_preempted` only."""

    def __init__(self, config: TrainConfig, progress: Any) -> None:
        self._seconds = None if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes
        self._steps, self._progress = config.steps, progress
        self._saved = self._checked = time.monotonic()
        self._answer: Any = None
        self._preemption: Any = None

    def due(self) -> int:
        """The requests of the step that begins."""
        request, now = Request(0), time.monotonic()
        if self._seconds is not None and now - self._saved >= self._seconds:
            request |= Request.SAVE
        if now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            request |= Request.CHECK_PREEMPTION
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            request |= self._read_answer()
        return int(request)

    def report(self, step: int, loss: float) -> None:
        """Reports the progress to the driver. Its answer, whether to stop, is read at a later step."""
        if self._progress is not None and self._answer is None:
            self._answer = self._progress.update.remote(step + 1, self._steps, f"loss {loss:.3f}")

    def note_save(self) -> None:
        """Starts the clock of the next save."""
        self._saved = time.monotonic()

    def is_preempted(self) -> bool:
        """Whether another node is about to be taken away than at the last call; every rank calls it."""
        info = ray.train.get_preemption_info()
        before, self._preemption = self._preemption, info
        return info is not None and (before is None or before.preempted_node_to_ranks != info.preempted_node_to_ranks)

    def _read_answer(self) -> Request:
        """The driver's answer. If the driver is gone, the run continues by itself."""
        answer, self._answer = self._answer, None
        try:
            return Request.STOP if ray.get(answer) else Request(0)
        except RayError:
            self._progress = None
            return Request(0)
