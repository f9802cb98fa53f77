"""Groups texts that are encoded together. Pure functions.

A batch holds the pieces that wait when the model becomes free, up to a budget of tokens: of many requests, or of one large
request. The embedder then sorts its texts by length and splits them into forward passes with at most half padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.serve.protocol import TokenIds

Vectors = NDArray[np.float32]
Encode = Callable[[TokenIds, int | None], Vectors]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Texts of one request that are encoded at the same time, as token ids."""

    rows: TokenIds
    dimensions: int | None

    @cached_property  # Serve computes the cost again with every piece that joins a batch
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def cost(pieces: Sequence[Piece]) -> int:
    """Tokens of a batch. Its padded size stays below twice that, because the embedder splits by length."""
    return sum(piece.tokens for piece in pieces)


def pieces(rows: TokenIds, dimensions: int | None, budget: int) -> list[Piece]:
    """Cuts a request, in order, into pieces within the budget, which is at least the longest text."""
    cuts, used = [0], 0
    for index, row in enumerate(rows):
        if used + len(row) > budget:
            cuts.append(index)
            used = 0
        used += len(row)
    ends = [*cuts[1:], len(rows)]
    return [Piece(rows=rows[start:end], dimensions=dimensions) for start, end in zip(cuts, ends, strict=True)]


def encode_batch(batch: Sequence[Piece], encode: Encode) -> list[Vectors | Exception]:
    """Vectors of each piece, or its exception. A piece that fails does not affect the others."""
    try:
        return list(_encode_together(batch, encode))
    except Exception as error:  # any error of the model, such as running out of memory
        return [error] if len(batch) == 1 else [encode_batch([piece], encode)[0] for piece in batch]


def _encode_together(batch: Sequence[Piece], encode: Encode) -> list[Vectors]:
    """The vectors of each piece, float32 [n, A], in order; calls the model once for each requested number of dimensions."""
    vectors: dict[int, Vectors] = {}
    for width in {piece.dimensions: None for piece in batch}:
        members = [number for number, piece in enumerate(batch) if piece.dimensions == width]
        encoded = encode([row for number in members for row in batch[number].rows], width)
        ends = np.cumsum([len(batch[number].rows) for number in members])
        vectors.update(zip(members, np.split(encoded, ends[:-1]), strict=True))
    return [vectors[number] for number in range(len(batch))]
