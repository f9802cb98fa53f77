"""Pools token vectors into one vector per text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

Pooling = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens without padding: [B, L, d] and [B, L] to [B, d]."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)


def first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token, `[CLS]` in BERT."""
    return tokens[:, 0]


def last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last token of a text that is padded on the right."""
    import torch

    return tokens[torch.arange(len(tokens)), mask.sum(dim=1) - 1]


POOLINGS: dict[str, Pooling] = {"mean": mean, "cls": first, "lasttoken": last}
"""Poolings by sentence-transformers' names of the modes."""
ALIASES = {"last": "lasttoken", "first": "cls"}
"""Other names that people use."""


def pooling_name(requested: str) -> str:
    """The key of `POOLINGS` for a name or an alias.

    Raises:
        ConfigError: the name is unknown.
    """
    name = ALIASES.get(requested, requested)
    if name not in POOLINGS:
        choices = ", ".join([*POOLINGS, *ALIASES])
        raise ConfigError(f"pooling {requested!r} is not known.", "embed.pooling", f"Choose one of: {choices}.")
    return name


def check_pooling(requested: str, causal: bool, model: str) -> None:
    """Rejects a pooling whose vector does not depend on the text.

    Raises:
        ConfigError: the pooling takes the first token of a causal model, which attends to no other.
    """
    if causal and pooling_name(requested) == "cls":
        raise ConfigError(
            f"{model} is causal: its first token sees no other, so its vector is the same for every text.",
            f"embed.pooling={requested}",
            "Choose lasttoken or mean.",
        )
