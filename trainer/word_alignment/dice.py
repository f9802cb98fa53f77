"""Which items of one side of aligned texts go with which of the other, by counting.

Dice coefficient (Smadja et al., Computational Linguistics 1996): with c the number of pairs in which an item occurs,

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
    """For each wanted target item the source items that it occurs with at least `min_count` times, and their Dice.

    Source items come in descending order of Dice, ties by id. Memory: one block of target items against all of their
    partners.
    """
    count_source = np.asarray(source.sum(axis=0)).ravel()
    count_target = np.asarray(target.sum(axis=0)).ravel()
    columns = target.tocsc()
    for start in range(0, len(wanted), _BLOCK):
        block = wanted[start : start + _BLOCK]
        together = (columns[:, block].T @ source).tocsr()
        for place, item in enumerate(block):
            part = slice(together.indptr[place], together.indptr[place + 1])
            partners, both = together.indices[part].astype(np.int64), together.data[part]
            often = both >= min_count
            partners, both = partners[often], both[often]
            score = 2.0 * both / (count_source[partners] + count_target[item])
            order = np.lexsort((partners, -score))
            yield int(item), partners[order], score[order]
