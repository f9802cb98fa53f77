"""What all static vectors have in common, and vectors that are a plain table of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


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
        import torch

        numbers = np.array([self._number.get(word, -1) for word in words], np.int64)
        found = np.zeros((len(numbers), self._rows.shape[1]), np.float32)
        found[numbers >= 0] = self._rows[numbers[numbers >= 0]]
        return torch.from_numpy(found)


class RotatedVectors:
    """Vectors seen in another space."""

    def __init__(self, inner: Vectors, rotation: torch.Tensor) -> None:
        self.words, self.counts, self.has_subwords = inner.words, inner.counts, inner.has_subwords
        self._inner, self._rotation = inner, rotation

    def __contains__(self, word: str) -> bool:
        return word in self._inner

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        return (self._inner.vectors(words).double() @ self._rotation).float()


class MultilingualVectors:
    """Vectors of several languages in one space. A word has the mean of its vectors, weighted by how often it occurs in each
    language, within longer words too where characters make vectors: a piece that two languages share lies between them."""

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self._parts = parts
        self.has_subwords = any(part.has_subwords for part in parts)
        totals: Counter[str] = Counter()
        for part in parts:
            totals.update(dict(zip(part.words, part.counts.tolist(), strict=True)))
        listed = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
        self.words = [word for word, _ in listed]
        self.counts = np.array([count for _, count in listed], np.float64)

    def __contains__(self, word: str) -> bool:
        return any(word in part for part in self._parts)

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        import torch

        names = list(words)
        found = torch.stack([part.vectors(names) for part in self._parts]).double()
        weights = torch.stack([torch.from_numpy(_occurrences(part, names)) for part in self._parts])
        weights = weights * (found.norm(dim=2) > 0)
        total = weights.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        return (torch.einsum("ln,lna->na", weights, found) / total[:, None]).float()


def _occurrences(part: Vectors, names: list[str]) -> NDArray[np.float64]:
    """How often each name occurs in the words of `part`, float64 [n]: as a word, or anywhere where characters make vectors."""
    wanted, counts = set(names), Counter[str]()
    longest = max(map(len, wanted), default=0)
    for word, count in zip(part.words, part.counts.tolist(), strict=True):
        if not part.has_subwords:
            counts[word] += count
            continue
        ends = range(1, len(word) + 1)
        for piece in {word[max(0, end - size) : end] for end in ends for size in range(1, min(end, longest) + 1)} & wanted:
            counts[piece] += count
    return np.array([counts[name] for name in names], np.float64)
