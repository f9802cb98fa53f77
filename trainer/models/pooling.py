"""From token vectors to one vector a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

Pooling = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens: [B, L, d] and [B, L] to [B, d]."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)


def first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token, `[CLS]` in BERT."""
    return tokens[:, 0]


def last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last real token of a row that is padded on the right."""
    import torch

    return tokens[torch.arange(len(tokens)), mask.sum(dim=1) - 1]


POOLINGS: dict[str, Pooling] = {"mean": mean, "cls": first, "lasttoken": last}
"""By sentence-transformers' names of the modes."""
ALIASES = {"last": "lasttoken", "first": "cls"}
"""What people also write."""


def pooling_name(written: str) -> str:
    """The key of `POOLINGS` that somebody means.

    Raises:
        ConfigError: there is no such pooling.
    """
    name = ALIASES.get(written, written)
    if name not in POOLINGS:
        known = ", ".join([*POOLINGS, *ALIASES])
        raise ConfigError(f"pooling {written!r} is not known.", "embed.pooling", f"Choose one of: {known}.")
    return name


def check_pooling(written: str, causal: bool, model: str) -> None:
    """Refuses a pooling that says nothing about the text.

    Raises:
        ConfigError: the first token of a causal model, which has seen no other.
    """
    if causal and pooling_name(written) == "cls":
        raise ConfigError(
            f"{model} is causal: its first token sees no other, so that every text has the same vector there.",
            f"embed.pooling={written}",
            "Choose lasttoken or mean.",
        )
