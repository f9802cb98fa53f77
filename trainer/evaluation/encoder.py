"""What a metric asks of an embedder, and an embedder that encodes a list of texts once for all metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """An `Embedder`, or vectors known beforehand."""

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Unit vectors [n, d] of n texts."""
        ...


class EncodesOnce:
    """Keeps the vectors of each list of texts. Whole lists, since a text's vector varies with its batch by 1e-5."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        key = tuple(texts)
        if key not in self._vectors:
            self._vectors[key] = self._encoder.encode(texts)
        return self._vectors[key]
