"""Which rows are encoded together. Pure.

Two grains. A batch, up to a budget of tokens, is what waits when the model is free: pieces of many requests, or of one
big one. In it, rows of similar length share a forward pass: a row goes to the next pass when it is shorter than half of
the longest, so that at most half of the positions are padding, whatever the mixture. In one pass, a long row among
short ones makes all of them as dear as itself, which is worse than no batch at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.serve.protocol import Rows

Vectors = NDArray[np.float32]
Encode = Callable[[Rows, int | None], Vectors]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of one request that are encoded at one time."""

    rows: Rows
    dimensions: int | None

    @cached_property  # Serve asks for the cost again with every piece that joins a batch
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def cost(pieces: Sequence[Piece]) -> int:
    """Tokens of a batch. Its padded size is below twice that, because `forwards` splits by length."""
    return sum(piece.tokens for piece in pieces)


def pieces(rows: Rows, dimensions: int | None, budget: int) -> list[Piece]:
    """Cuts a request, in order, into pieces within the budget. `budget` is at least the longest row."""
    cuts, used = [0], 0
    for index, row in enumerate(rows):
        if used + len(row) > budget:
            cuts.append(index)
            used = 0
        used += len(row)
    ends = [*cuts[1:], len(rows)]
    return [Piece(rows=rows[start:end], dimensions=dimensions) for start, end in zip(cuts, ends, strict=True)]


def forwards(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers, by falling length, in groups of which no row is shorter than half of the longest."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not groups or 2 * lengths[row] < lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return groups


def encode_batch(batch: Sequence[Piece], encode: Encode) -> list[Vectors | Exception]:
    """Vectors of each piece. A piece that fails has its exception and leaves the others alone."""
    try:
        return list(_together(batch, encode))
    except Exception as error:  # whatever a model can raise, running out of memory included
        return [error] if len(batch) == 1 else [encode_batch([piece], encode)[0] for piece in batch]


def _together(batch: Sequence[Piece], encode: Encode) -> list[Vectors]:
    vectors: dict[tuple[int, int], Vectors] = {}
    for width in {piece.dimensions: None for piece in batch}:
        places = [(i, j) for i, piece in enumerate(batch) if piece.dimensions == width for j in range(len(piece.rows))]
        rows = [batch[i].rows[j] for i, j in places]
        for group in forwards([len(row) for row in rows]):
            encoded = encode([rows[number] for number in group], width)
            vectors.update(zip([places[number] for number in group], encoded, strict=True))
    return [np.stack([vectors[i, j] for j in range(len(piece.rows))]) for i, piece in enumerate(batch)]
