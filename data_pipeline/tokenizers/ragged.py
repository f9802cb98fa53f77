"""Lists of token ids of any length, stored as two arrays."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Concatenated lists of token ids."""

    flat: NDArray[np.uint32]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of(cls, lists: list[list[int]]) -> "Ragged":
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        flat = np.fromiter(itertools.chain.from_iterable(lists), np.uint32, int(sizes.sum()))
        return cls(flat=flat, sizes=sizes)

    def take(self, rows: NDArray[np.integer]) -> "Ragged":
        """Some of the lists, in the order given."""
        sizes = self.sizes[rows]
        begins = (np.cumsum(self.sizes) - self.sizes)[rows]
        shift = begins - (np.cumsum(sizes) - sizes)
        return Ragged(flat=self.flat[np.repeat(shift, sizes) + np.arange(int(sizes.sum()))], sizes=sizes)

    def merge_runs(self, counts: NDArray[np.integer]) -> "Ragged":
        """The first `counts[0]` lists as one, the next `counts[1]` as one, and so on."""
        ends = np.concatenate([[0], np.cumsum(self.sizes)])[np.concatenate([[0], np.cumsum(counts)])]
        return Ragged(flat=self.flat, sizes=np.diff(ends))

    def wrap(self, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> "Ragged":
        """Adds ids before and after each list."""
        sizes = self.sizes + len(prefix) + len(suffix)
        ends = np.cumsum(sizes)
        flat = np.empty(int(sizes.sum()), np.uint32)
        shift = (ends - sizes + len(prefix)) - (np.cumsum(self.sizes) - self.sizes)
        flat[np.repeat(shift, self.sizes) + np.arange(len(self.flat))] = self.flat
        for place, token in enumerate(prefix):
            flat[ends - sizes + place] = token
        for place, token in enumerate(reversed(suffix), 1):
            flat[ends - place] = token
        return Ragged(flat=flat, sizes=sizes)
