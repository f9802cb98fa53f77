"""The documents of each pair, its positive and its hard negatives, as rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def by_pair(owners: torch.Tensor, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of each pair's documents in their order, int [pairs, most], and which of them there are, bool.

    Places that no document takes are 0.

    Args:
        owners: int [D], the pair of each document.
        pairs: how many pairs there are.
    """
    import torch

    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=pairs)
    slots = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
    most = int(counts.max()) if len(owners) else 0
    places = torch.zeros(pairs, most, dtype=torch.int64, device=owners.device)
    places[owners[order], slots] = order
    return places, torch.arange(most, device=owners.device)[None] < counts[:, None]
