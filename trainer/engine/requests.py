"""What the first rank decides for all, because its clock and what it hears from outside are its own."""

import time
from enum import IntFlag
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError

from trainer.config.train import TrainConfig

_LOOK_SECONDS = 5.0
"""Between questions to Ray Train whether a node is about to go: each is a round trip of all ranks."""


class Request(IntFlag):
    """Told with the first all-reduce of a step, and heeded by all ranks after it."""

    SAVE = 1
    STOP = 2
    LOOK = 4
    """Ask Ray Train whether a node is about to go."""


class Requests:
    """Of the first rank; on the others only `preempted` is used."""

    def __init__(self, config: TrainConfig, progress: Any) -> None:
        self._seconds = None if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes
        self._steps, self._progress = config.steps, progress
        self._saved = self._looked = time.monotonic()
        self._answer: Any = None
        self._known: Any = None

    def due(self) -> int:
        """Wishes for the step that begins."""
        wish, now = Request(0), time.monotonic()
        if self._seconds is not None and now - self._saved >= self._seconds:
            wish |= Request.SAVE
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            wish |= Request.LOOK
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            wish |= self._heard()
        return int(wish)

    def _heard(self) -> Request:
        """What the driver said. Where nobody is there any more, the run goes on by itself."""
        answer, self._answer = self._answer, None
        try:
            return Request.STOP if ray.get(answer) else Request(0)
        except RayError:
            self._progress = None
            return Request(0)

    def report(self, step: int, loss: float) -> None:
        """Tells the driver how far the run is; its answer, whether to stop, is heard at a later step."""
        if self._progress is not None and self._answer is None:
            self._answer = self._progress.update.remote(step + 1, self._steps, f"loss {loss:.3f}")

    def note_save(self) -> None:
        self._saved = time.monotonic()

    def is_preempted(self) -> bool:
        """Whether a node is about to go that was not known to; every rank calls it."""
        info = ray.train.get_preemption_info()
        known, self._known = self._known, info
        return info is not None and (known is None or known.preempted_node_to_ranks != info.preempted_node_to_ranks)
