"""A keyed permutation of range(n) with O(1) memory and random access.

A four-round Feistel network on the smallest even number of bits that holds n, with cycle walking for values outside the
range (Black and Rogaway, CT-RSA 2002, "Ciphers with arbitrary finite domains"). It is a bijection for every key and
computes the i-th element without the others.
"""

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random

_ROUNDS = 4


def permute(keys: int | NDArray[np.uint64], n: int, index: NDArray[np.integer]) -> NDArray[np.int64]:
    """The image of each `index` under the permutation of range(n).

    Args:
        keys: 64 bits, see `keyed_random.key`: one key, or one for each index.
        n: size of the domain, at least 1.
        index: int array [m] with values in [0, n).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    index_keys = np.broadcast_to(np.asarray(keys, np.uint64), np.shape(index))
    value = _feistel(index_keys, half, np.asarray(index).astype(np.uint64))
    outside = np.flatnonzero(value >= n)
    while len(outside):
        value[outside] = _feistel(index_keys[outside], half, value[outside])
        outside = outside[value[outside] >= n]
    return value.astype(np.int64)


def _feistel(keys: NDArray[np.uint64], half: int, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each value of 2 * `half` bits mapped by the Feistel network of its key, uint64 [m]; a bijection for every key."""
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = value >> shift, value & mask
    for round_number in range(_ROUNDS):
        # The round number sits above the half block, so that no two rounds share an input.
        mixed = keyed_random.bits(keys, right + np.uint64(round_number << 32)) & mask
        left, right = right, left ^ mixed
    return (left << shift) | right
