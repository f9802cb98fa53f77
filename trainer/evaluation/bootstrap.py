"""Bootstrap intervals of scores (Efron 1979), with the same samples for every model.

Samples are keyed on the number of queries alone, so two models are compared on the same ones (paired: Koehn, EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random

SAMPLES = 2_000
Values = NDArray[np.float64]
_BLOCK = 1 << 20
"""Draws at once."""


def replicates(n: int, statistics: Callable[[NDArray[np.int64]], Mapping[str, Values]]) -> dict[str, Values]:
    """The values [`SAMPLES`] of each statistic on the samples of n queries.

    Args:
        statistics: takes the places of the queries in b samples [b, n]; returns the values [b] by name.
    """
    blocks = [statistics(places) for places in samples(n)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def means(values: Mapping[str, Values]) -> dict[str, Values]:
    """The mean of each score on the samples, [`SAMPLES`].

    Args:
        values: the scores [n] of the queries by name.
    """
    n = len(next(iter(values.values())))
    return replicates(n, lambda places: {name: scores[places].mean(axis=1) for name, scores in values.items()})


def intervals(found: Mapping[str, Values]) -> dict[str, list[float]]:
    """The middle 95 % of the replicates of each score, as [low, high] under NAME_interval."""
    return {f"{name}_interval": np.quantile(values, (0.025, 0.975)).tolist() for name, values in found.items()}


def samples(n: int) -> Iterator[NDArray[np.int64]]:
    """Places [b, n] in 0..n-1, with replacement, in blocks of samples."""
    key, rows = keyed_random.key("bootstrap", n), max(1, _BLOCK // n)
    for start in range(0, SAMPLES, rows):
        counters = np.arange(start * n, min(start + rows, SAMPLES) * n)
        yield np.floor(keyed_random.uniforms(key, counters) * n).astype(np.int64).reshape(-1, n)
