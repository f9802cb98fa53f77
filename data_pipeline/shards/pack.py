"""Packing: documents of any length into rows of one length. Pure functions on NumPy arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """N rows of L tokens. All but the last row are full; `n_tokens[i]` of row i are text, the rest is padding."""

    ids: NDArray[np.uint32]
    """[N, L]"""
    n_tokens: NDArray[np.int32]
    """[N]"""
    doc_starts: list[NDArray[np.int32]]
    """For each row the places at which a document begins."""

    @property
    def padding(self) -> int:
        return int(self.ids.size - self.n_tokens.sum())


def concat_split(documents: list[NDArray[np.uint32]], length: int, pad: int) -> Packed:
    """Joins all documents and cuts the stream every `length` tokens; nothing is lost, the last row is padded.

    Args:
        documents: token ids of each document, special tokens that frame it included.
        length: tokens in a row.
        pad: id that fills the last row.
    """
    flat = np.concatenate(documents) if documents else np.empty(0, np.uint32)
    rows = -(-len(flat) // length)
    ids = np.full(rows * length, pad, np.uint32)
    ids[: len(flat)] = flat
    n_tokens = np.full(rows, length, np.int32)
    if rows:
        n_tokens[-1] = len(flat) - (rows - 1) * length
    starts = np.cumsum([0, *map(len, documents[:-1])]) if documents else np.empty(0, np.int64)
    row_of = starts // length
    cuts = np.searchsorted(row_of, np.arange(1, rows)) if rows else np.empty(0, np.int64)
    places = np.split((starts % length).astype(np.int32), cuts)
    return Packed(ids=ids.reshape(rows, length), n_tokens=n_tokens, doc_starts=places[:rows])


def segments(doc_starts: NDArray[np.int32], n_tokens: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For one row the number of the document at each place and the position inside it; padding is document -1.

    A document that was cut by the row's edge counts from 0 again, because what came before cannot be seen.
    """
    begins = np.zeros(length, np.int64)
    begins[doc_starts] = 1
    begins[0] = 1
    segment = np.cumsum(begins) - 1
    first = np.maximum.accumulate(np.where(begins == 1, np.arange(length), 0))
    position = np.arange(length) - first
    segment[n_tokens:], position[n_tokens:] = -1, 0
    return segment, position
