"""Which rows are encoded together; a failure stays with its request."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serve import batching
from cluster.serve.batching import Piece

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def rows_of(lengths: list[int]) -> list[list[int]]:
    return [[number] * length for number, length in enumerate(lengths)]


def encode(rows: list[list[int]], dimensions: int | None) -> np.ndarray:
    """Vectors that hold the number and length of their row, and the requested width."""
    return np.array([[row[0], len(row), dimensions or 0] for row in rows], dtype=np.float32)


@settings(deadline=None)
@given(lengths, st.integers(40, 200))
def test_pieces_keep_every_row_in_order_and_within_the_budget(lengths, budget) -> None:
    rows = rows_of(lengths)
    pieces = batching.pieces(rows, 8, budget)
    assert [row for piece in pieces for row in piece.rows] == rows
    assert all(piece.rows and batching.cost([piece]) <= budget for piece in pieces)
    assert all(piece.dimensions == 8 for piece in pieces)


@settings(deadline=None)
@given(lengths, st.integers(40, 200))
def test_no_two_pieces_in_a_row_would_fit_in_one(lengths, budget) -> None:
    pieces = batching.pieces(rows_of(lengths), None, budget)
    assert all(one.tokens + len(two.rows[0]) > budget for one, two in pairwise(pieces))


@settings(deadline=None)
@given(st.lists(st.tuples(lengths, st.sampled_from([None, 8, 16])), min_size=1, max_size=5))
def test_each_piece_gets_its_own_vectors_at_its_own_width(requests) -> None:
    batch = [Piece(rows=rows_of(lengths), dimensions=dimensions) for lengths, dimensions in requests]
    for piece, vectors in zip(batch, batching.encode_batch(batch, encode), strict=True):
        assert np.array_equal(vectors, encode(piece.rows, piece.dimensions))


def test_a_piece_that_fails_leaves_the_others_alone() -> None:
    def failing(rows: list[list[int]], dimensions: int | None) -> np.ndarray:
        if any(row[0] == 13 for row in rows):
            raise MemoryError("out of memory")
        return encode(rows, dimensions)

    batch = [Piece(rows=[[number, number]], dimensions=None) for number in (1, 13, 2)]
    first, second, third = batching.encode_batch(batch, failing)
    assert isinstance(second, MemoryError)
    assert np.array_equal(first, [[1, 2, 0]])
    assert np.array_equal(third, [[2, 2, 0]])
