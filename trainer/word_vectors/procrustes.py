"""The rotation that turns one set of vectors into another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    import torch


def procrustes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The orthogonal R that minimises |x R - y| (Schoenemann 1966), float64 [A, A].

    Args:
        x, y: float [n, A], row i of one belongs to row i of the other.

    Raises:
        DataError: the widths differ, or there is no row.
    """
    import torch

    if x.shape != y.shape or not len(x):
        raise DataError(
            f"cannot align {tuple(x.shape)} with {tuple(y.shape)} vectors.", "transfer", "Give vectors of one width."
        )
    u, _, vt = torch.linalg.svd(x.double().T @ y.double())
    return u @ vt
