"""How a learning rate falls: pure functions of the rows trained on.

Each answers with the share of the highest rate after `done` rows, where the fall begins at `start` rows and ends at `end`.
"""

import math
from collections.abc import Callable


def linear(done: int, start: int, end: int) -> float:
    """In a line to 0."""
    return (end - done) / (end - start)


def cosine(done: int, start: int, end: int) -> float:
    """Along half a cosine to 0 (Loshchilov and Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * (done - start) / (end - start)))


def stable(done: int, start: int, end: int) -> float:
    """The highest up to `start`, then in a line to 0 (Zhai et al. 2022; Haegele et al. 2024): up to `start` it does not
    depend on the length of the run."""
    return min(1.0, linear(done, start, end))


def constant(done: int, start: int, end: int) -> float:
    """The highest throughout."""
    return 1.0


SHARES: dict[str, Callable[[int, int, int], float]] = {"linear": linear, "cosine": cosine, "wsd": stable, "constant": constant}
