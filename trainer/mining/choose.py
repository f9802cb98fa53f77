"""Draws hard negatives from the nearest texts of a query.

Texts that may be positives go first: those that are (by their text), and those that score almost as high as a positive, or
higher (NV-Retriever, Moreira et al. 2024: arXiv:2407.15831, 95 % of the positive's score). A window of the rest is left,
from which some are drawn at random, as for BGE (Xiao et al. 2023, arXiv:2309.07597) and KaLM-Embedding (Hu et al. 2025,
arXiv:2501.01028: ranks 50 to 100). The order is that of `mine_hard_negatives` in sentence-transformers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random
from trainer.mining.config import MineConfig


class Drawn(NamedTuple):
    """The negatives of a query, in descending order of score, and how many of its nearest texts were left out and why."""

    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    excluded: int
    margin: int
    max_score: int


def draw(
    index: NDArray[np.int64],
    scores: NDArray[np.float64],
    *,
    excluded: frozenset[int],
    positive_score: float,
    keys: NDArray[np.int64],
    key: int,
    config: MineConfig,
) -> Drawn:
    """The negatives of a query.

    Args:
        index, scores: [k] its nearest texts in descending order of score; an index of -1 is none.
        excluded: texts that are no negatives.
        positive_score: the lowest score of its positives, which the margins are measured from.
        keys: [T] of all texts: whether a text is drawn depends on its key, not on its place.
        key: of the seed and the query.
    """
    is_there = index >= 0
    is_excluded = is_there & np.isin(index, np.fromiter(excluded, np.int64, len(excluded)))
    bars = [np.inf]
    if config.margin is not None:
        bars.append(positive_score - config.margin)
    if config.relative_margin is not None:
        bars.append(positive_score - abs(positive_score) * config.relative_margin)
    is_near = is_there & ~is_excluded & (scores > min(bars))
    is_high = is_there & ~is_excluded & ~is_near & (scores > (np.inf if config.max_score is None else config.max_score))
    left = np.flatnonzero(is_there & ~is_excluded & ~is_near & ~is_high)
    window = left[config.first - 1 : config.last]
    chance = keyed_random.uniforms(key, keys[index[window]])
    chosen = np.sort(window[np.argsort(chance, kind="stable")[: config.negatives]])
    return Drawn(index[chosen], scores[chosen], int(is_excluded.sum()), int(is_near.sum()), int(is_high.sum()))
