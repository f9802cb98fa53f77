"""Unit rows with exact dot products, so results do not depend on block sizes, the order of rows or the number of threads.

The entries of a unit row are rounded to multiples of 2^-24. A product of two entries is then a multiple of 2^-48, and by
Cauchy-Schwarz no sum of such products reaches 2: float64 represents every partial sum of a dot product exactly, in any order
of summation. The rounding changes a cosine by about 1e-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

GRID = 2.0**-24
"""The finest grid that float32 represents for all numbers up to 1."""
_BLOCK = 4096


def normalise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Unit rows on the grid, float32, and the original lengths [n]; a zero row stays zero."""
    import torch

    unit, lengths = torch.empty(rows.shape), np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        wide = rows[part].double().numpy()
        lengths[part] = np.sqrt(np.einsum("na,na->n", wide, wide))
        wide = wide / np.maximum(lengths[part], np.finfo(np.float64).tiny)[:, None]
        unit[part] = torch.from_numpy(np.rint(wide / GRID) * GRID)
    return unit, lengths


def products(left: torch.Tensor, right: torch.Tensor) -> NDArray[np.float64]:
    """The exact dot products [n, m] of two results of `normalise_rows`, [n, A] and [m, A]."""
    return left.double().numpy() @ right.double().numpy().T
