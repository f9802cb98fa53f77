"""Latent attention pooling (NV-Embed, Lee et al. 2024, arXiv:2405.17428, section 3.1): a trained dictionary, then a mean.

    h' = h + O(softmax(Q(h) K(Z)^T / sqrt(d / heads)) V(Z)),   Z [r, d] the latents
    h'' = h' + W2 gelu(W1 h')                                  then the mean of h'' over the tokens

Our reading of the released model adds the residuals and a layer norm in front of both steps, which the paper's formula leaves
out. Differences: heads are as wide as d / heads, and O and W2 begin at zero, so that a training begins with the mean of the
tokens.

The module is a part of the transformers model, `latent_pooling`: so it is partitioned, saved, merged and exported like any
other weight. Transformers ignores its weights in a folder.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from data_pipeline.errors import ModelError
from trainer.models.pooling import mean

NAME = "latent_pooling"
"""The attribute of the model, and the prefix of its weights in a folder."""
_HEADS = 8
"""Most heads; fewer where they do not divide the width."""
_SEED = 0


class LatentAttention(torch.nn.Module):
    """Pools token vectors [B, L, d] with places [B, L] to [B, d]."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, _HEADS)
        self.latents = torch.nn.Parameter(torch.randn(latents, width))
        self.norm, self.latent_norm, self.inner_norm = (torch.nn.LayerNorm(width) for _ in range(3))
        self.query, self.output = (torch.nn.Linear(width, width, bias=False) for _ in range(2))
        self.key_value = torch.nn.Linear(width, 2 * width, bias=False)
        self.widen, self.narrow = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        for weight in (self.output.weight, self.narrow.weight, self.narrow.bias):
            torch.nn.init.zeros_(weight)

    def forward(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Vectors [B, d] of token vectors [B, L, d]; `places` as in `pooling`."""
        tokens = tokens.to(self.latents.dtype)
        query = self._split(self.query(self.norm(tokens)).flatten(0, 1))
        key, value = (self._split(part) for part in self.key_value(self.latent_norm(self.latents)).chunk(2, dim=-1))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.output(attended.squeeze(0).transpose(0, 1).reshape(tokens.shape))
        tokens = tokens + self.narrow(torch.nn.functional.gelu(self.widen(self.inner_norm(tokens))))
        return mean(tokens, places)

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, d] to [1, heads, n, d / heads]."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(0, 1).unsqueeze(0)


def attach(model: PreTrainedModel, folder: str, latents: int | None) -> None:
    """Gives the model the pooling of the folder, or a new one.

    Args:
        latents: of a new one, whose weights depend on nothing but the sizes; None if the folder must have one.

    Raises:
        ModelError: the folder has none, or one of other sizes.
    """
    saved = dict(_saved(folder))
    if not saved and latents is None:
        raise ModelError("the weights of its latent attention are missing.", f"model {folder}", "Train the embedder again.")
    count = len(saved["latents"]) if saved else latents
    if latents not in (None, count):
        raise ModelError(f"it has {count} latents, not {latents}.", f"model {folder}", f"Set embed.latents={count}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        pooling = LatentAttention(_width(model), int(count or 0))
    if saved:
        pooling.load_state_dict(saved)
    model.add_module(NAME, pooling.to(model.dtype))


def _width(model: PreTrainedModel) -> int:
    """Width of the model's output vectors; OPT-350m's is not its `hidden_size`."""
    config: Any = model.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _saved(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the pooling in a model folder, by their names in the module."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), framework="pt") as file:
                own = [key for key in file.keys() if key.startswith(f"{NAME}.")]  # noqa: SIM118
                for key in own:
                    yield key.removeprefix(f"{NAME}."), file.get_tensor(key)
