"""How the slots of a run are shared out among streams (languages), exactly and reproducibly.

Weights count tokens. The rows of each stream fall due at even distances, and slots follow in order of due time (error
diffusion). After any number of slots a stream of weight w out of K streams is within (1 + K w) / 2 rows of its share:
its own count is within 1/2 of w times the due time, and the due time is within K / 2 of the number of slots.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError


def temperature_weights(tokens: Mapping[str, int], alpha: float) -> dict[str, float]:
    """Weights proportional to `tokens ** alpha` (Conneau and Lample 2019): 1 is as found, 0 is uniform."""
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}.")
    raised = {name: float(count) ** alpha for name, count in tokens.items() if count > 0}
    total = sum(raised.values())
    return {name: value / total for name, value in sorted(raised.items())}


def assign(weights: NDArray[np.float64], slots: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stream of each slot and its position within that stream, by random access.

    Stream k is due its n-th row (n from 0) at time (n + 1/2) / w_k; slots follow in order of due time, ties by stream
    number. The slot of a due time is the number of rows due before it, so any slot is found by bisection on time.

    Args:
        weights: float array [streams], positive, sum 1.
        slots: int array [m], any order.
    """
    if len(weights) == 1:
        return np.zeros(len(slots), np.int64), np.asarray(slots, np.int64)
    low = np.asarray(slots, np.float64) - len(weights)
    high = np.asarray(slots, np.float64) + len(weights) + 1
    # The slot's due time is the smallest time at which more than `slot` rows are due.
    for _ in range(64):
        middle = (low + high) / 2
        more = _due(weights, middle).sum(axis=0) > slots
        low, high = np.where(more, low, middle), np.where(more, middle, high)
    before, after = _due(weights, low), _due(weights, high)
    # Streams that fall due at this very time share the slots from `before` on, in stream order.
    rank = np.asarray(slots) - before.sum(axis=0)
    falls = np.cumsum(after - before, axis=0)
    stream = (falls <= rank).sum(axis=0)
    return stream, np.take_along_axis(before, stream[None], axis=0)[0]


def _due(weights: NDArray[np.float64], time: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows due at or before `time`, int [streams, times]."""
    return np.maximum(0, np.floor(weights[:, None] * time[None] + 0.5)).astype(np.int64)
