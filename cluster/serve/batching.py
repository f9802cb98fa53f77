"""Which rows are encoded together. Pure.

A batch, up to a budget of tokens, is what waits when the model is free: pieces of many requests, or of one big one. The
embedder then sorts its rows by length and splits them into forward passes of which at most half is padding.
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
    """Rows of one request that are encoded at one time."""

    rows: TokenIds
    dimensions: int | None

    @cached_property  # Serve asks for the cost again with every piece that joins a batch
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def cost(pieces: Sequence[Piece]) -> int:
    """Tokens of a batch. Its padded size stays below twice that, because the embedder splits by length."""
    return sum(piece.tokens for piece in pieces)


def pieces(rows: TokenIds, dimensions: int | None, budget: int) -> list[Piece]:
    """Cuts a request, in order, into pieces within the budget. `budget` is at least the longest row."""
    cuts, used = [0], 0
    for index, row in enumerate(rows):
        if used + len(row) > budget:
            cuts.append(index)
            used = 0
        used += len(row)
    ends = [*cuts[1:], len(rows)]
    return [Piece(rows=rows[start:end], dimensions=dimensions) for start, end in zip(cuts, ends, strict=True)]


def encode_batch(batch: Sequence[Piece], encode: Encode) -> list[Vectors | Exception]:
    """Vectors of each piece. A piece that fails has its exception and leaves the others alone."""
    try:
        return list(_together(batch, encode))
    except Exception as error:  # whatever a model can raise, running out of memory included
        return [error] if len(batch) == 1 else [encode_batch([piece], encode)[0] for piece in batch]


def _together(batch: Sequence[Piece], encode: Encode) -> list[Vectors]:
    vectors: dict[int, Vectors] = {}
    for width in {piece.dimensions: None for piece in batch}:
        members = [number for number, piece in enumerate(batch) if piece.dimensions == width]
        encoded = encode([row for number in members for row in batch[number].rows], width)
        ends = np.cumsum([len(batch[number].rows) for number in members])
        vectors.update(zip(members, np.split(encoded, ends[:-1]), strict=True))
    return [vectors[number] for number in range(len(batch))]
