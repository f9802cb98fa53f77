"""Unit rows whose products are exact, so that no result depends on how rows are cut, ordered or threaded.

A row at length 1 is rounded to multiples of 2^-24. A product of two entries is then a multiple of 2^-48, and by Cauchy and
Schwarz no sum of such products reaches 2: float64 holds every partial sum of a dot product, in whatever order a matrix
product takes it. The rounding moves a cosine by some 1e-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

GRID = 2.0**-24
"""The finest that float32 holds for every number up to 1."""
_BLOCK = 4096


def normalise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Rows at length 1 on the grid, float32, and the lengths they had [n]; a zero row stays zero."""
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
    """Every dot product of two sets of `normalise_rows` [n, A] and [m, A], exactly: [n, m]."""
    return left.double().numpy() @ right.double().numpy().T
