"""What a metric asks of an embedder, and an embedder that encodes a list of texts once for all metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """An `Embedder`, or vectors known beforehand."""

    def encode(self, texts: Sequence[str], /, *, prompt_name: str | None = None) -> NDArray[np.float32]:
        """Unit vectors [n, d] of n texts.

        Args:
            prompt_name: the side of a search on which they are, `query` or `document`; None if there are no sides.
        """
        ...


class EncodesOnce:
    """Keeps the vectors of each list of texts. Whole lists, since a text's vector varies with its batch by 1e-5."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors: dict[tuple[str | int | None, ...], NDArray[np.float32]] = {}

    def encode(
        self, texts: Sequence[str], /, *, prompt_name: str | None = None, layers: int | None = None
    ) -> NDArray[np.float32]:
        """As `Encoder.encode`; with the first `layers` of an `Embedder`."""
        key = (prompt_name, layers, *texts)
        if key not in self._vectors:
            at = {} if layers is None else {"layers": layers}
            self._vectors[key] = self._encoder.encode(texts, prompt_name=prompt_name, **at)
        return self._vectors[key]


def unit_rows(vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors [n, d] of length 1; those of zeros stay as they are."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
