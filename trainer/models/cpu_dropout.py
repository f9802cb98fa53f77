"""Fast dropout on a CPU.

torch draws a Bernoulli number per activation from a single-threaded Mersenne twister, which takes a sixth of a training step
of a small encoder. Here NumPy's SFC64 gives sixteen bits per activation. torch draws its seed, so `torch.manual_seed` and the
generator's state determine the mask as for torch's own dropout.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

_VALUES = 1 << 16


class Dropout(torch.nn.Module):
    """Like torch's dropout, for `p` below 1, rounded to a multiple of 2^-16."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return hidden
        drop, scale = dropout_mask(hidden.shape, self.p)
        return torch.where(drop, 0.0, hidden) * scale


def replace_dropout(module: torch.nn.Module) -> None:
    """Replaces every torch dropout within `module` by ours."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))


def dropout_mask(shape: Sequence[int], p: float) -> tuple[torch.Tensor, float]:
    """The elements to drop, bool of `shape`, and the factor for the others."""
    count, threshold = prod(shape), round(p * _VALUES)
    raw = np.random.SFC64(int(torch.randint(1 << 62, ()))).random_raw(-(-count // 4)).view(np.int16)[:count]
    return torch.from_numpy(raw).view(*shape) < threshold - _VALUES // 2, _VALUES / (_VALUES - threshold)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, p: float
) -> torch.Tensor:
    """Scaled dot-product attention with dropout, [B, H, L, D]: equal to torch's SDPA, with fewer passes over the weights.

    Args:
        query: [B, H, L, D]
        key, value: [B, H / n, L, D]
        mask: bool [B, 1, L, L], whether a query attends to a key; None for full attention.
        p: the share of the weights to drop.
    """
    groups = query.shape[1] // key.shape[1]
    repeated = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    queries, keys, values = (tensor.flatten(0, 1) for tensor in (query, *repeated))
    scores = torch.baddbmm(query.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=scaling)
    scores = scores.unflatten(0, query.shape[:2])
    weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
    drop, scale = dropout_mask(weights.shape, p)
    remaining = torch.where(drop, 0.0, weights).flatten(0, 1)
    return torch.bmm(remaining, values * scale).unflatten(0, query.shape[:2])
