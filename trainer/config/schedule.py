"""Learning-rate schedules: pure functions of the rows trained on.

Each returns the share of the highest rate after `done` rows, for a decay that begins at `start` rows and ends at `end`.
"""

import math
from collections.abc import Callable


def linear(done: int, start: int, end: int) -> float:
    """Falls linearly to 0."""
    return (end - done) / (end - start)


def cosine(done: int, start: int, end: int) -> float:
    """Falls along half a cosine to 0 (Loshchilov and Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * (done - start) / (end - start)))


def stable(done: int, start: int, end: int) -> float:
    """The highest until `start`, then linearly to 0 (Zhai et al. 2022; Haegele et al. 2024).

    Until `start` it does not depend on the length of the run.
    """
    return min(1.0, linear(done, start, end))


def constant(done: int, start: int, end: int) -> float:
    """Always the highest."""
    return 1.0


SHARES: dict[str, Callable[[int, int, int], float]] = {"linear": linear, "cosine": cosine, "wsd": stable, "constant": constant}
