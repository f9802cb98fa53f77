"""Counter-based randomness: the same (seed, purpose, index) gives the same numbers on any machine and in any order.

There is no generator and no state. A key is a hash of the seed and the purpose. The n-th number of a key is a mix of key
and n (the finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014). NumPy's generators are not used: their streams may
change between releases and depend on how many numbers were drawn before.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key(*parts: object) -> int:
    """A 64-bit key for `parts` (str, bytes or int); the borders between parts count."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


def bits(keys: int | NDArray[np.uint64], counters: NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 random bits for each counter; `keys` is one key or an array that broadcasts against `counters`."""
    with np.errstate(over="ignore"):
        start = np.asarray(keys, dtype=np.uint64)
        z = start + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        # A second round with the key: otherwise keys that differ by a multiple of the increment would share a stream.
        z = (z ^ (z >> np.uint64(31))) + start * _MIX_1
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniforms(keys: int | NDArray[np.uint64], counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """Numbers in [0, 1), 53 bits each."""
    return (bits(keys, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(keys: int | NDArray[np.uint64], counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard normal numbers (Box and Muller 1958): number n uses the bits 2n and 2n + 1."""
    radius = np.sqrt(-2.0 * np.log1p(-uniforms(keys, 2 * counters)))
    return radius * np.cos(2.0 * np.pi * uniforms(keys, 2 * counters + 1))
