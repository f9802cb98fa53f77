"""Orthogonal Procrustes: the rotation that maps one set of vectors onto another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    import torch


def procrustes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The orthogonal R that minimises |x R - y| (Schoenemann 1966), float64 [A, A].

    Args:
        x, y: float [n, A]; rows with the same index belong together.

    Raises:
        DataError: the widths differ, or there are no rows.
    """
    import torch

    if x.shape != y.shape or not len(x):
        raise DataError(
            f"cannot align {tuple(x.shape)} with {tuple(y.shape)} vectors.", "transfer", "Give vectors of one width."
        )
    u, _, vt = torch.linalg.svd(x.double().T @ y.double())
    return u @ vt
