"""Blocked nearest-neighbour kernels: exact, and never more than one block of similarities in memory."""

import torch

from data_pipeline.errors import DataError

BLOCK = 1024
"""Rows scored at once. Fixed, because the block is part of the arithmetic."""


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Rows at length 1; a zero row stays zero."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-8)


def top_softmax(queries: torch.Tensor, keys: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """For each query the `k` keys of highest cosine and their softmax weights.

    Args:
        queries: float [n, A], unit rows.
        keys: float [m, A], unit rows.

    Returns:
        int [n, k] and float [n, k] whose rows sum to 1.
    """
    k = min(k, len(keys))
    columns, weights = [], []
    for block in queries.split(BLOCK):
        score, index = (block @ keys.T).topk(k, dim=1)
        columns.append(index)
        weights.append(torch.softmax(score / temperature, dim=1))
    return torch.cat(columns), torch.cat(weights)


def top_sparsemax(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparsemax of the cosines with all keys (Martins and Astudillo, ICML 2016), computed from the highest few.

    Sparsemax gives weight to the highest scores only. When the support found among the top m has fewer than m members,
    every score outside is below the threshold, so the result is the exact one; else m is doubled.

    Returns:
        int [n, k] and float [n, k], weights 0 outside the support, k the largest support.
    """
    columns, weights = [], []
    for block in queries.split(BLOCK):
        scores = block @ keys.T
        m = min(64, scores.shape[1])
        while True:
            top, index = scores.topk(m, dim=1)
            weight, support = sparsemax_sorted(top)
            if m == scores.shape[1] or bool((support < m).all()):
                break
            m = min(2 * m, scores.shape[1])
        columns.append(index)
        weights.append(weight)
    widest = max(int((weight > 0).sum(dim=1).max()) for weight in weights)
    return torch.cat([c[:, :widest] for c in columns]), torch.cat([w[:, :widest] for w in weights])


def sparsemax_sorted(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparsemax of rows sorted in descending order, and the size of each support.

    The threshold is found in fp64: it is a small difference of sums when many scores are alike.
    """
    wide = z.double()
    order = torch.arange(1, z.shape[1] + 1, dtype=wide.dtype)
    inside = 1 + order * wide > wide.cumsum(dim=1)
    support = inside.sum(dim=1)
    tau = (wide * inside).sum(dim=1).sub(1) / support
    return (wide - tau[:, None]).clamp_min(0).to(z.dtype), support


def procrustes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The orthogonal R that minimises |x R - y| (Schoenemann 1966), float64 [A, A].

    Args:
        x, y: float [n, A], row i of one belongs to row i of the other.

    Raises:
        DataError: the widths differ, or there is no row.
    """
    if x.shape != y.shape or not len(x):
        raise DataError(
            f"cannot align {tuple(x.shape)} with {tuple(y.shape)} vectors.", "transfer", "Give vectors of one width."
        )
    u, _, vt = torch.linalg.svd(x.double().T @ y.double())
    return u @ vt
