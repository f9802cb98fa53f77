"""Packs documents of any length into rows of one length. Pure functions on NumPy arrays.

`concat_split` has no padding and cuts about one document a row. First-fit and best-fit (Johnson et al., SIAM J. Comput.
1974) cut only documents that are longer than a row, at the price of padding. `PackedRows` counts both.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenizers.ragged import Ragged


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """N rows of L tokens; the first `n_tokens[i]` of row i are text, the rest is padding."""

    ids: NDArray[np.uint32]
    """[N, L]"""
    n_tokens: NDArray[np.int32]
    """[N]"""
    doc_starts: list[NDArray[np.int32]]
    """For each row the places at which a document, or the rest of one from another row, begins."""
    cut_documents: int
    """Documents in more than one row."""

    @property
    def padding(self) -> int:
        return int(self.ids.size - self.n_tokens.sum())


Packing = Callable[[Ragged, int, int], PackedRows]


def concat_split(documents: Ragged, length: int, pad: int) -> PackedRows:
    """Joins all documents and cuts the result every `length` tokens. Loses no token; pads the last row.

    Args:
        documents: token ids of each document, with the special tokens around it.
        length: tokens in a row.
        pad: id that fills the last row.
    """
    flat = documents.flat
    rows = -(-len(flat) // length)
    ids = np.full(rows * length, pad, np.uint32)
    ids[: len(flat)] = flat
    n_tokens = np.full(rows, length, np.int32)
    if rows:
        n_tokens[-1] = len(flat) - (rows - 1) * length
    bounds = np.concatenate([[0], np.cumsum(documents.sizes)])
    starts = bounds[:-1]
    row_of = starts // length
    cuts = np.searchsorted(row_of, np.arange(1, rows)) if rows else np.empty(0, np.int64)
    places = np.split((starts % length).astype(np.int32), cuts)
    cut = int((row_of != (bounds[1:] - 1) // length).sum())
    return PackedRows(ids=ids.reshape(rows, length), n_tokens=n_tokens, doc_starts=places[:rows], cut_documents=cut)


def first_fit(documents: Ragged, length: int, pad: int) -> PackedRows:
    """Puts each document, in order, into the first row with room for it. Cuts documents longer than a row first.

    A tree of maxima finds the first row with room: O(log rows) a document.
    """
    pieces = _pieces(documents, length)
    leaves = 1 << max(0, len(pieces) - 1).bit_length()
    room = [length] * (2 * leaves)
    rows = np.empty(len(pieces), np.int64)
    for number, size in enumerate(pieces.sizes.tolist()):
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= size else 2 * node + 1
        rows[number] = node - leaves
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return _fill(pieces, rows, documents, length, pad)


def best_fit(documents: Ragged, length: int, pad: int) -> PackedRows:
    """Puts each document, in order, into the fullest row with room for it, the first of equally full ones.

    Rows are indexed by their room; the bits of one number mark the rooms that occur.
    """
    pieces = _pieces(documents, length)
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    occurring, opened = 0, 0
    rows = np.empty(len(pieces), np.int64)
    for number, size in enumerate(pieces.sizes.tolist()):
        fitting = occurring >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = heapq.heappop(by_room[room])
            occurring &= ~(1 << room) if not by_room[room] else -1
        else:
            row, room, opened = opened, length, opened + 1
        rows[number] = row
        heapq.heappush(by_room[room - size], row)
        occurring |= 1 << (room - size)
    return _fill(pieces, rows, documents, length, pad)


PACKINGS: dict[str, Packing] = {"concat": concat_split, "first_fit": first_fit, "best_fit": best_fit}


def _pieces(documents: Ragged, length: int) -> Ragged:
    """Documents, with those longer than a row cut into several."""
    counts = -(-documents.sizes // length)
    sizes = np.full(int(counts.sum()), length, np.int64)
    sizes[np.cumsum(counts)[counts > 0] - 1] = (documents.sizes - (counts - 1) * length)[counts > 0]
    return Ragged(flat=documents.flat, sizes=sizes)


def _fill(pieces: Ragged, row_of: NDArray[np.int64], documents: Ragged, length: int, pad: int) -> PackedRows:
    """Fills the rows with their pieces, in the pieces' order."""
    rows = int(row_of.max(initial=-1)) + 1
    order = np.argsort(row_of, kind="stable")
    by_row = pieces.take(order)
    begins = np.cumsum(by_row.sizes) - by_row.sizes
    n_tokens = np.bincount(row_of, weights=pieces.sizes, minlength=rows).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(n_tokens)])[row_of[order]]
    place = begins - before
    ids = np.full(rows * length, pad, np.uint32)
    ids[np.repeat(row_of[order] * length - before, by_row.sizes) + np.arange(len(by_row.flat))] = by_row.flat
    cuts = np.searchsorted(row_of[order], np.arange(1, rows)) if rows else np.empty(0, np.int64)
    return PackedRows(
        ids=ids.reshape(rows, length),
        n_tokens=n_tokens.astype(np.int32),
        doc_starts=np.split(place.astype(np.int32), cuts)[:rows],
        cut_documents=int((documents.sizes > length).sum()),
    )


def segments(
    row: NDArray[np.integer], start: NDArray[np.integer], n_tokens: NDArray[np.integer], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each place of each row the number of its document and the position inside it; padding is document -1.

    The rest of a cut document counts from 0 again, because the model does not see its beginning.

    Args:
        row, start: for each document its row and the place where it begins there, rows ascending.
        n_tokens: [B], number of text tokens of each row.
    """
    begins = np.zeros((len(n_tokens), length), np.int64)
    begins[row, start] = 1
    begins[:, 0] = 1
    place = np.arange(length)
    segment = begins.cumsum(axis=1) - 1
    position = place - np.maximum.accumulate(np.where(begins == 1, place, 0), axis=1)
    padding = place >= n_tokens[:, None]
    segment[padding], position[padding] = -1, 0
    return segment, position
