"""What to make of a step's loss: pure functions."""

import statistics
from collections.abc import Iterable

WINDOW = 64
"""Steps whose losses a spike is told from, and at most left out with it."""
MAX_REFUSED = 3
"""Steps in a row that may be without an update before the run goes back."""
MAX_ROLLBACKS = 3
"""Times that a run goes back within `ROLLBACK_MEMORY` before it gives up."""
ROLLBACK_MEMORY = 10 * WINDOW
"""Planned steps after which a time that the run went back counts no more."""
MAX_DEATHS = 3
"""Attempts that may die in the same step before the run gives up."""
_FLOOR = 0.01


def spike_score(loss: float, recent: list[float]) -> float:
    """How far `loss` is above the median of `recent`, in robust standard deviations (1.4826 times the median absolute
    deviation, which for a normal distribution is its standard deviation); 0 before the window is half full.

    A deviation below 1 % of the median counts as 1 %: losses that hardly vary would make any other a spike.
    """
    if len(recent) < WINDOW // 2:
        return 0.0
    middle = statistics.median(recent)
    deviation = 1.4826 * statistics.median([abs(value - middle) for value in recent])
    return (loss - middle) / max(deviation, _FLOOR * abs(middle), 1e-12)


def comparable_losses(recent: list[float], before: int, now: int, edges: tuple[int, ...]) -> list[float]:
    """The losses to compare that of planned step `now` with: those since the last of `edges`, planned steps from which on the
    mixture or the batch size is another, and with it the level of the loss. `before` is the planned step before it."""
    return [] if any(before < edge <= now for edge in edges) else recent


def rollbacks_near(skipped: Iterable[tuple[int, int]], planned: int) -> int:
    """How often a run has gone back within `ROLLBACK_MEMORY` of planned step `planned`."""
    return sum(abs(planned - last) <= ROLLBACK_MEMORY for _, last in skipped)


def rollback_step(step: int, before: int) -> int:
    """The step at or before which a run goes on that went wrong in `step` and has gone back `before` times lately.

    The update that did the harm may be older than the newest checkpoint, so that going back there would undo nothing: a window
    back, and one more for each time before.
    """
    return step - WINDOW * (before + 1)


def steps_to_skip(first: int, last: int, skipped: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The planned steps [a, b) to leave out after the planned step `last` went wrong in a run that goes back to `first`: the
    window up to it (Chowdhery et al. 2022, section 5.1, left out 200 to 500), not before what was left out already."""
    return max(first, last + 1 - WINDOW, *(end for _, end in skipped if end <= last)), last + 1
