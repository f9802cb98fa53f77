"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685) by the `peft` library: W x + (alpha / rank) B A x, of which A and
B learn and W does not.

The embeddings and the head of a model whose vocabulary is new have to learn in full, and do.
"""

import warnings
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import ConfigError, reason


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
    from peft.tuners.lora.layer import ParamWrapper
    from transformers.pytorch_utils import Conv1D

    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    whole = [name for name, part in model.named_modules() if any(part is one for one in parts)]
    # Not peft's "all-linear", by which it means Mixtral's experts, too, which are no layers.
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear | Conv1D)]
    targets = list(settings.targets) or [name for name in linear if name not in whole]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, exclude_modules=whole, lora_dropout=0.0
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says what it settles by itself, as that GPT-2's matrices are transposed
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ConfigError(
                f"no layer can have adapters ({reason(error)}).",
                "train.lora_targets",
                "Name ends of the names of linear layers, other than the head.",
            ) from error
    if any(isinstance(part, ParamWrapper) for part in model.modules()):
        raise ConfigError("experts have no adapters.", "train.lora_targets", "Name linear layers, as those of the attention.")
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
    del model.peft_config
