"""Pools token vectors into one vector per text: the modes of sentence-transformers, under its names.

A pooling reads token vectors [B, L, d] and the places [B, L] of the tokens that it pools: 1, 2, ... in the order of a text, 0
for padding and for tokens that are left out, such as those of a prompt. So padding may be on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

Pooling = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def places(mask: torch.Tensor, skipped: torch.Tensor | None = None) -> torch.Tensor:
    """Places of the tokens to pool, int [B, L].

    Args:
        mask: int [B, L], 0 for padding, which may be on either side.
        skipped: int [B], how many of a text's first tokens are left out; the others keep their places.
    """
    counted = mask.cumsum(dim=1) * mask
    return counted if skipped is None else counted * (counted > skipped[:, None])


def mean(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens."""
    return _weighted_mean(tokens, (places > 0).float())


def weighted_mean(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The mean in which token i counts i times: in a causal model it has read i tokens (Muennighoff 2022, arXiv:2202.08904)."""
    return _weighted_mean(tokens, places.float())


def mean_sqrt_length(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The sum over the tokens, divided by the square root of their number."""
    weights = (places > 0).float()
    return mean(tokens, places) * weights.sum(dim=1, keepdim=True).sqrt().to(tokens.dtype)


def maximum(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The largest value of each dimension over the tokens."""
    return tokens.masked_fill((places == 0).unsqueeze(-1), float("-inf")).amax(dim=1)


def first(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The first token, `[CLS]` in BERT."""
    return _take(tokens, (places > 0).int().argmax(dim=1))


def last(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The last token, which alone has read the whole text in a causal model."""
    return _take(tokens, places.argmax(dim=1))


def _weighted_mean(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean over [B, L, d] by weights [B, L], summed in fp32, since a bf16 sum of many tokens loses the small ones."""
    summed = (tokens.float() * weights.unsqueeze(-1)).sum(dim=1)
    return (summed / weights.sum(dim=1, keepdim=True).clamp_min(1e-9)).to(tokens.dtype)


def _take(tokens: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """One token of each text, [B, d]."""
    import torch

    return tokens[torch.arange(len(tokens), device=tokens.device), column]


POOLINGS: dict[str, Pooling] = {
    "mean": mean,
    "cls": first,
    "lasttoken": last,
    "weightedmean": weighted_mean,
    "max": maximum,
    "mean_sqrt_len_tokens": mean_sqrt_length,
}
"""Poolings by sentence-transformers' names of the modes."""
LATENT_ATTENTION = "latentattention"
"""A pooling with weights of its own (`latent_attention.py`), a part of the model."""
NAMES = (*POOLINGS, LATENT_ATTENTION)
ALIASES = {"last": "lasttoken", "first": "cls"}
"""Other names that people use."""


def pooling_of(name: str, model: Any) -> Pooling:
    """The pooling of a name; the one with weights is the model's `latent_pooling`."""
    return model.latent_pooling if name == LATENT_ATTENTION else POOLINGS[name]


def pooling_name(requested: str) -> str:
    """The entry of `NAMES` for a name or an alias.

    Raises:
        ConfigError: the name is unknown.
    """
    name = ALIASES.get(requested, requested)
    if name not in NAMES:
        choices = ", ".join([*NAMES, *ALIASES])
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
            "Choose lasttoken, weightedmean or mean, or set embed.bidirectional=true.",
        )


def check_latents(latents: int, pooling: str, adapts: bool) -> None:
    """Checks the settings of latent attention.

    Args:
        adapts: whether the model is trained by adapters.

    Raises:
        ConfigError: there are no latents, or adapters would freeze them.
    """
    if latents < 1:
        raise ConfigError(f"there must be at least one, got {latents}.", "embed.latents")
    if pooling == LATENT_ATTENTION and adapts:
        raise ConfigError(
            "adapters freeze all other weights, and those of latentattention must be trained.",
            "embed.train.lora_rank",
            "Leave it out, or take another pooling.",
        )
