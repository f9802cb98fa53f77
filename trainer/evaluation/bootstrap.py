"""Bootstrap intervals of scores (Efron 1979), with the same samples for every model.

Samples are keyed on the number of queries alone, so two models are compared on the same ones (paired: Koehn, EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random

SAMPLES = 2_000
_BLOCK = 1 << 20
"""Draws at once."""


def intervals(n: int, statistics: Callable[[NDArray[np.int64]], Mapping[str, NDArray[np.float64]]]) -> dict[str, list[float]]:
    """The middle 95 % of each statistic over samples of n queries, as [low, high].

    Args:
        statistics: takes the places of the queries in b samples [b, n]; returns the values [b] by name.
    """
    blocks = [statistics(places) for places in samples(n)]
    by_name = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: np.quantile(values, (0.025, 0.975)).tolist() for name, values in by_name.items()}


def samples(n: int) -> Iterator[NDArray[np.int64]]:
    """Places [b, n] in 0..n-1, with replacement, in blocks of samples."""
    key, rows = keyed_random.key("bootstrap", n), max(1, _BLOCK // n)
    for start in range(0, SAMPLES, rows):
        counters = np.arange(start * n, min(start + rows, SAMPLES) * n)
        yield np.floor(keyed_random.uniforms(key, counters) * n).astype(np.int64).reshape(-1, n)
