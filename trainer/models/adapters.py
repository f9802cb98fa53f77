"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685) by the `peft` library.

A layer computes W x + (alpha / rank) B A x, where only A and B are trained.

The embeddings and the head are trained in full, because the vocabulary is new.
"""

import warnings
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import ConfigError, reason

_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_READ_BY_KERNELS = (".x_proj", ".dt_proj", ".out_proj", ".conv1d")
"""Layers of these models (as listed by peft 0.21) whose weights a kernel of transformers 5.23 reads without calling the layer:
an adapter there would not be trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Sizes and layers of the adapters; in peft's `LoraConfig`: `r`, `lora_alpha` and `target_modules`."""

    rank: int
    alpha: int
    targets: tuple[str, ...] = ()
    """Suffixes of layer names; empty means every linear layer."""


def add_adapters(model: Any, settings: Lora, seed: int = 0) -> None:
    """Adds adapters to the layers of a transformers model.

    B is 0, so the model's output does not change; A is drawn from `seed`.

    Raises:
        ConfigError: no layer matches the targets, or a target cannot have an adapter.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    # A wrapper without a config: with one, peft treats modules named like Mixtral's experts as experts, not as layers.
    wrapper = torch.nn.ModuleDict({"model": model})
    vocabulary_modules = (model.get_input_embeddings(), model.get_output_embeddings())
    fully_trained = [name for name, module in wrapper.named_modules() if any(module is layer for layer in vocabulary_modules)]
    linear_layers = [name for name, module in wrapper.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    excluded = _READ_BY_KERNELS if model.config.model_type in _MAMBA else ()
    targets = list(settings.targets) or [
        name for name in linear_layers if name not in fully_trained and not name.endswith(excluded)
    ]
    if any(f".{target}".endswith(excluded) for target in targets):
        raise ConfigError(
            f"a kernel of {model.config.model_type} reads the weights of {', '.join(_READ_BY_KERNELS)} past any adapter.",
            "train.lora_targets",
            "Name other layers.",
        )
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, exclude_modules=fully_trained, lora_dropout=0.0
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reports what it handles by itself, e.g. GPT-2's transposed matrices
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, wrapper)
        except ValueError as error:
            raise ConfigError(
                f"no layer can have adapters ({reason(error)}).",
                "train.lora_targets",
                "Give suffixes of the names of linear layers other than the head.",
            ) from error
    for name, weight in model.named_parameters():
        if is_adapter(name):
            weight.data = weight.data.float()  # peft uses the dtype of the layer


def is_adapter(name: str) -> bool:
    """Whether the parameter belongs to an adapter."""
    return ".lora_" in name


def merge_adapters(model: Any) -> None:
    """Merges each adapter into the weights of its layer (by peft's `merge`) and removes it: the model is plain again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
