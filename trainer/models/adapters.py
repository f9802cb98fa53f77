"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685) by the `peft` library: W x + (alpha / rank) B A x, of which A and
B learn and W does not.

The embeddings and the head of a model whose vocabulary is new have to learn in full, and do.
"""

import warnings
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import ConfigError, reason

_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_READ_BY_KERNELS = (".x_proj", ".dt_proj", ".out_proj", ".conv1d")
"""Layers of these models (as peft 0.21 lists them) whose weights a kernel of transformers 5.23 reads without calling the layer:
an adapter there would never learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Sizes and places of the adapters, by peft's `LoraConfig`: `r`, `lora_alpha` and `target_modules`."""

    rank: int
    alpha: int
    targets: tuple[str, ...] = ()
    """Ends of the names of layers; every linear layer when empty."""


def add_adapters(model: Any, settings: Lora, seed: int = 0) -> None:
    """Puts adapters into the layers of a transformers model. B is 0, so that the model computes what it did; A is drawn from
    `seed`.

    Raises:
        ConfigError: no layer has such a name.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    # Without a config beside it, by which peft takes what is called as Mixtral's experts are for experts, which are no layers.
    alone = torch.nn.ModuleDict({"model": model})
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    whole = [name for name, part in alone.named_modules() if any(part is one for one in parts)]
    linear = [name for name, part in alone.named_modules() if isinstance(part, torch.nn.Linear | Conv1D)]
    excluded = _READ_BY_KERNELS if model.config.model_type in _MAMBA else ()
    targets = list(settings.targets) or [name for name in linear if name not in whole and not name.endswith(excluded)]
    if any(f".{target}".endswith(excluded) for target in targets):
        raise ConfigError(
            f"a kernel of {model.config.model_type} reads the weights of {', '.join(_READ_BY_KERNELS)} past any adapter.",
            "train.lora_targets",
            "Name other layers.",
        )
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, exclude_modules=whole, lora_dropout=0.0
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says what it settles by itself, as that GPT-2's matrices are transposed
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, alone)
        except ValueError as error:
            raise ConfigError(
                f"no layer can have adapters ({reason(error)}).",
                "train.lora_targets",
                "Name ends of the names of linear layers, other than the head.",
            ) from error
    for name, weight in model.named_parameters():
        if is_adapter(name):
            weight.data = weight.data.float()  # peft takes the format of the layer


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def merge_adapters(model: Any) -> None:
    """Adds each adapter to the weights of its layer, by peft's own `merge`, and takes it out: the model is a plain one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(model.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            model.set_submodule(name, part.get_base_layer())
