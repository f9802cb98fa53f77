"""What to make of a step's loss: pure functions."""

import statistics
from collections.abc import Iterable

from trainer.config.train import WINDOW as WINDOW

MAX_REFUSED = 3
"""Consecutive skipped updates after which the run rolls back."""
MAX_ROLLBACKS = 3
"""Rollbacks within `ROLLBACK_MEMORY` after which the run gives up."""
ROLLBACK_MEMORY = 10 * WINDOW
"""Steps of the order after which a rollback no longer counts."""
MAX_DEATHS = 3
"""Attempts that may die in the same step before the run gives up."""
_FLOOR = 0.01


def spike_score(loss: float, recent: list[float]) -> float:
    """How far `loss` is above the median of `recent`, in robust standard deviations; 0 until the window is half full.

    A robust standard deviation is 1.4826 times the median absolute deviation; for a normal distribution it is the standard
    deviation. It is at least 1 % of the median: otherwise losses that hardly vary would make any other a spike.
    """
    if len(recent) < WINDOW // 2:
        return 0.0
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median([abs(value - median) for value in recent])
    return (loss - median) / max(deviation, _FLOOR * abs(median), 1e-12)


def comparable_losses(recent: list[float], before: int, now: int, change_steps: tuple[int, ...]) -> list[float]:
    """The losses that are comparable with that of step `now` of the order.

    They are those since the last of `change_steps`, at which the mixture or the batch size changes, and with it the level of
    the loss. `before` is the step of the order before `now`.
    """
    return [] if any(before < change <= now for change in change_steps) else recent


def rollbacks_near(skipped: Iterable[tuple[int, int]], step: int) -> int:
    """The number of rollbacks within `ROLLBACK_MEMORY` of a step of the order."""
    return sum(abs(step - last) <= ROLLBACK_MEMORY for _, last in skipped)


def rollback_step(step: int, before: int) -> int:
    """The step at or before which a run resumes that failed in `step` after `before` recent rollbacks.

    The harmful update may be older than the newest checkpoint, so that resuming there would undo nothing: one window back, and
    one more for each recent rollback.
    """
    return step - WINDOW * (before + 1)


def steps_to_skip(first: int, last: int, skipped: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The steps [a, b) of the order to skip after step `last` failed in a run that rolls back to `first`.

    That is the window up to the failure (Chowdhery et al. 2022, section 5.1, skipped 200 to 500 steps), without steps that are
    skipped already.
    """
    return max(first, last + 1 - WINDOW, *(end for _, end in skipped if end <= last)), last + 1
