"""The contract of static word vectors, and vectors that are a table, rotated or multilingual."""

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
    """The words that have their own vector, in descending order of frequency."""
    counts: NDArray[np.float64]
    """The counts of the words, or numbers in proportion to them."""
    has_subwords: bool
    """Whether an unseen word gets a vector from its characters."""

    def __contains__(self, word: str) -> bool: ...

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        """Float32 [n, A]; a zero row for a word without a vector."""
        ...


class TableVectors:
    """A table with one vector per word; other words have none."""

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
        rows = np.zeros((len(numbers), self._rows.shape[1]), np.float32)
        rows[numbers >= 0] = self._rows[numbers[numbers >= 0]]
        return torch.from_numpy(rows)


class RotatedVectors:
    """Vectors rotated into another space."""

    def __init__(self, inner: Vectors, rotation: torch.Tensor) -> None:
        self.words, self.counts, self.has_subwords = inner.words, inner.counts, inner.has_subwords
        self._inner, self._rotation = inner, rotation

    def __contains__(self, word: str) -> bool:
        return word in self._inner

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        return (self._inner.vectors(words).double() @ self._rotation).float()


class MultilingualVectors:
    """Vectors of several languages in one space.

    The vector of a word is the mean of its vectors in the languages, weighted by its frequency in each: a piece that two
    languages share lies between them. With subwords, occurrences within longer words count too.
    """

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self._parts = parts
        self.has_subwords = any(part.has_subwords for part in parts)
        totals: Counter[str] = Counter()
        for part in parts:
            totals.update(dict(zip(part.words, part.counts.tolist(), strict=True)))
        sorted_totals = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
        self.words = [word for word, _ in sorted_totals]
        self.counts = np.array([count for _, count in sorted_totals], np.float64)

    def __contains__(self, word: str) -> bool:
        return any(word in part for part in self._parts)

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        """Float32 [n, A], the means over languages weighted by frequency; a zero row for a word without a vector."""
        import torch

        names = list(words)
        vectors = torch.stack([part.vectors(names) for part in self._parts]).double()
        weights = torch.stack([torch.from_numpy(_occurrences(part, names)) for part in self._parts])
        weights = weights * (vectors.norm(dim=2) > 0)
        total = weights.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        return (torch.einsum("ln,lna->na", weights, vectors) / total[:, None]).float()


def _occurrences(part: Vectors, names: list[str]) -> NDArray[np.float64]:
    """How often each name occurs in the words of `part`, float64 [n]: as a word or, with subwords, as any substring."""
    name_set, counts = set(names), Counter[str]()
    longest = max(map(len, name_set), default=0)
    for word, count in zip(part.words, part.counts.tolist(), strict=True):
        if not part.has_subwords:
            counts[word] += count
            continue
        ends = range(1, len(word) + 1)
        for piece in {word[max(0, end - size) : end] for end in ends for size in range(1, min(end, longest) + 1)} & name_set:
            counts[piece] += count
    return np.array([counts[name] for name in names], np.float64)
