"""Dropout on a CPU without waiting for random numbers.

torch draws a Bernoulli number per activation from a Mersenne twister, in one thread: a sixth of a training step of a small
encoder. Here sixteen bits per activation come from NumPy's SFC64, whose seed torch draws, so that `torch.manual_seed` and the
generator's state decide as they do for torch's own dropout.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

_VALUES = 1 << 16


class Dropout(torch.nn.Module):
    """As torch's for `p` below 1, rounded to a multiple of 2^-16."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return hidden
        drop, scale = dropout_mask(hidden.shape, self.p)
        return torch.where(drop, 0.0, hidden) * scale


def replace_dropout(module: torch.nn.Module) -> None:
    """Puts ours in the place of torch's, in all parts of `module`."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(part, name, Dropout(child.p).train(child.training))


def dropout_mask(shape: Sequence[int], p: float) -> tuple[torch.Tensor, float]:
    """Which elements are dropped, bool of `shape`, and what the others are multiplied by."""
    count, below = prod(shape), round(p * _VALUES)
    raw = np.random.SFC64(int(torch.randint(1 << 62, ()))).random_raw(-(-count // 4)).view(np.int16)[:count]
    return torch.from_numpy(raw).view(*shape) < below - _VALUES // 2, _VALUES / (_VALUES - below)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, p: float
) -> torch.Tensor:
    """Scaled dot products with dropped weights, [B, H, L, D]: what torch's SDPA gives in fewer passes over its weights.

    Args:
        query: [B, H, L, D]
        key, value: [B, H / n, L, D]
        mask: bool [B, 1, L, L], whether a query sees a key; None if each sees all.
        p: share of the weights that are dropped.
    """
    groups = query.shape[1] // key.shape[1]
    wide = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    queries, keys, values = (one.flatten(0, 1) for one in (query, *wide))
    scores = torch.baddbmm(query.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=scaling)
    scores = scores.unflatten(0, query.shape[:2])
    weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
    drop, scale = dropout_mask(weights.shape, p)
    kept = torch.where(drop, 0.0, weights).flatten(0, 1)
    return torch.bmm(kept, values * scale).unflatten(0, query.shape[:2])
