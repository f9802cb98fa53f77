"""Divides the slots of a run, or its steps, among streams (languages, tasks), exactly and reproducibly.

The rows of each stream fall due at equal intervals, and slots follow in order of due time (error diffusion). After any
number of slots a stream of weight w out of K streams is within (1 + K w) / 2 rows of its share: its own count is within
1/2 of w times the due time, and the due time is within K / 2 of the number of slots. All counts are integers: weights are
multiples of 2^-24, so that every machine computes the same. Any slot is computed without the slots before it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError

_BITS = 24
LAST_SLOT = 1 << (62 - _BITS)
"""Upper bound of slots, 2.7e11: weight times slot fits into 64 bits."""


def temperature_weights(tokens: Mapping[str, int], alpha: float) -> dict[str, float]:
    """Weights proportional to `tokens ** alpha` (Conneau and Lample 2019): 1 keeps the proportions, 0 is uniform."""
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}.")
    raised = {name: float(count) ** alpha for name, count in tokens.items() if count > 0}
    total = sum(raised.values())
    return {name: value / total for name, value in sorted(raised.items())}


def quantise(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Weights as integers that sum to 2^24, by largest remainder; a weight above 0 stays above 0.

    Args:
        weights: float array [streams], at least 0, not all 0.
    """
    share = weights / weights.sum() * (1 << _BITS)
    whole = np.maximum(np.floor(share).astype(np.int64), weights > 0)
    missing = (1 << _BITS) - int(whole.sum())
    # Tiny weights may have been raised to 1: the largest weight compensates.
    if missing < 0:
        whole[np.argmax(whole)] += missing
    else:
        whole[np.argsort(-(share - whole), kind="stable")[:missing]] += 1
    return whole


def rows_due(weights: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows due at or before integer `time` (at least 0), int [streams, times].

    Stream k is due its n-th row (n from 0) at time (n + 1/2) / w_k.
    """
    return (weights[:, None] * time[None] + (1 << (_BITS - 1))) >> _BITS


def assign(weights: NDArray[np.int64], slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stream of each slot and its position within that stream, by random access.

    Slots follow in order of due time, ties by stream number. Bisection on the number of rows due finds the unit of time of
    a slot; a stream has at most one row in it.

    Args:
        weights: int array [streams], see `quantise`.
        slots: int array [m], any order.
    """
    if len(weights) == 1:
        return np.zeros(len(slots), np.int64), slots
    before, turns, rank = _time_unit(weights, slots)
    stream = np.take_along_axis(turns, rank[None], axis=0)[0]
    return stream, np.take_along_axis(before, stream[None], axis=0)[0]


def counts(weights: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """Rows of each stream among the first `slots` slots, int [streams]."""
    before, turns, rank = _time_unit(weights, np.array([slots]))
    rows = before[:, 0]
    rows[turns[: rank[0], 0]] += 1
    return rows


def _time_unit(
    weights: NDArray[np.int64], slots: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The unit of time of each slot, as the streams' rows before it and in it, and the slot's place in it.

    The rows due before it and the streams in their turn within it are int [streams, m], the place among those turns int [m].
    """
    low = np.maximum(slots - len(weights) // 2 - 1, 0)
    for step in (1 << power for power in reversed(range((len(weights) + 3).bit_length()))):
        low = np.where(rows_due(weights, low + step).sum(axis=0) <= slots, low + step, low)
    before = rows_due(weights, low)
    falls = rows_due(weights, low + 1) > before
    with np.errstate(divide="ignore"):
        when = np.where(falls, (2 * before + 1) / weights[:, None], np.inf)
    return before, np.argsort(when, axis=0, kind="stable"), slots - before.sum(axis=0)


def check_shares(alpha: float, weights: dict[str, float], where: str) -> None:
    """Checks the proportions that a user gives.

    Raises:
        ConfigError: an alpha outside of 0 and 1, a negative weight, or no weight above 0.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}.", where)
    if weights and (min(weights.values()) < 0 or max(weights.values()) == 0):
        raise ConfigError(f"weights must be at least 0, and one of them above, got {weights}.", where)
