"""Associates items of the two sides of parallel texts by their Dice coefficient.

Smadja et al., Computational Linguistics 1996. With the number c of text pairs in which an item occurs:

    dice(s, t) = 2 c(s and t) / (c(s) + c(t))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import scipy.sparse

_BLOCK = 2048


def occurrences(texts: Sequence[Sequence[int]], items: int) -> scipy.sparse.csr_matrix:
    """1 where an item occurs in a text, int32 [texts, items]."""
    import scipy.sparse

    unique = [np.unique(np.asarray(text, np.int64)) for text in texts]
    bounds = np.concatenate([[0], np.cumsum([len(text) for text in unique])])
    flat = np.concatenate(unique) if unique else np.empty(0, np.int64)
    return scipy.sparse.csr_matrix((np.ones(len(flat), np.int32), flat, bounds), shape=(len(texts), items))


def dice(
    source: scipy.sparse.csr_matrix, target: scipy.sparse.csr_matrix, wanted: NDArray[np.int64], min_count: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Yields, for each wanted target item, the source items that it occurs with at least `min_count` times, and their Dice.

    Source items are in descending order of Dice, ties by id. Memory: the co-occurrence counts of one block of target items.
    """
    source_counts = np.asarray(source.sum(axis=0)).ravel()
    target_counts = np.asarray(target.sum(axis=0)).ravel()
    columns = target.tocsc()
    for start in range(0, len(wanted), _BLOCK):
        block = wanted[start : start + _BLOCK]
        cooccurrences = (columns[:, block].T @ source).tocsr()
        for row, item in enumerate(block):
            entries = slice(cooccurrences.indptr[row], cooccurrences.indptr[row + 1])
            partners, counts = cooccurrences.indices[entries].astype(np.int64), cooccurrences.data[entries]
            is_frequent = counts >= min_count
            partners, counts = partners[is_frequent], counts[is_frequent]
            scores = 2.0 * counts / (source_counts[partners] + target_counts[item])
            order = np.lexsort((partners, -scores))
            yield int(item), partners[order], scores[order]
