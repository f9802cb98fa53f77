"""What all static vectors have in common, and vectors that are a plain table of words."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Vectors(Protocol):
    """Vectors of words [n, A]."""

    words: list[str]
    """The words that have a vector of their own, the most frequent first."""
    counts: NDArray[np.float64]
    """How often each occurred, or numbers in proportion to that."""
    has_subwords: bool
    """Whether a word that was never seen gets a vector from its characters."""

    def __contains__(self, word: str) -> bool: ...

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        """Float32 [n, A]; a zero row for a word that has none."""
        ...


class TableVectors:
    """One row a word and nothing for other words."""

    has_subwords = False

    def __init__(self, words: Sequence[str], rows: NDArray[np.float32], counts: NDArray[np.float64]) -> None:
        self.words = list(words)
        self.counts = counts
        self._rows = rows
        self._number = {word: number for number, word in enumerate(self.words)}

    def __contains__(self, word: str) -> bool:
        return word in self._number

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        numbers = np.array([self._number.get(word, -1) for word in words], np.int64)
        found = np.zeros((len(numbers), self._rows.shape[1]), np.float32)
        found[numbers >= 0] = self._rows[numbers[numbers >= 0]]
        return torch.from_numpy(found)


class Rotated:
    """Vectors seen in another space."""

    def __init__(self, inner: Vectors, rotation: torch.Tensor) -> None:
        self.words, self.counts, self.has_subwords = inner.words, inner.counts, inner.has_subwords
        self._inner, self._rotation = inner, rotation

    def __contains__(self, word: str) -> bool:
        return word in self._inner

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        return (self._inner.vectors(words).double() @ self._rotation).float()
