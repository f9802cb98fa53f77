"""Trained weights into a model that was loaded from its source."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from trainer.models.adapters import Lora, add_adapters, merge_adapters
from trainer.models.freezing import frozen_names, names_without_adapters


def dtype_of(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The format in which to save the trained weights."""
    return next(value.dtype for value in weights.values() if value.is_floating_point())


def load_trained(module: Any, weights: Mapping[str, torch.Tensor], frozen: Collection[str], lora: Lora | None) -> None:
    """Puts trained weights into a module that was just loaded from its source, in the format of `weights`.

    Args:
        weights: the trained module's state dict, without what is frozen.
        frozen: patterns as in `TrainConfig.frozen`.
        lora: adapters to merge; the weights that they adapt are then the source's.
    """
    if lora is None:
        load_weights(module.model, weights, frozen_names(module, frozen))
    else:
        add_adapters(module.model, lora)
        load_weights(module.model, weights, names_without_adapters(module))
        module.float()
        merge_adapters(module.model)
    module.to(dtype_of(weights))


def load_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], frozen: Collection[str] = ()) -> None:
    """Replaces the model's weights by those of a module's `model.` part, without a copy.

    Tied weights may be named once or twice; `frozen` names may be missing.
    """
    parameters = model.state_dict(keep_vars=True)
    new_values = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    unexpected = [name for name, value in new_values.items() if name not in parameters or value.shape != parameters[name].shape]
    replaced = {id(parameters[name]) for name in new_values if name in parameters}
    missing = [
        name for name, parameter in parameters.items() if id(parameter) not in replaced and f"model.{name}" not in frozen
    ]
    assert not missing + unexpected, f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}"
    for name, value in new_values.items():
        parameters[name].data = value
