"""From token vectors to one vector a text."""

from collections.abc import Callable

import torch

Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens: [B, L, d] and [B, L] to [B, d]."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)


def first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token, `[CLS]` in BERT."""
    return tokens[:, 0]


def last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last real token of a row that is padded on the right."""
    return tokens[torch.arange(len(tokens)), mask.sum(dim=1) - 1]


POOLINGS: dict[str, Pooling] = {"mean": mean, "cls": first, "lasttoken": last}
"""By sentence-transformers' names of the modes."""
