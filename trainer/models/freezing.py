"""Freezes weights: `TrainConfig.frozen`.

Frozen weights stay equal to the source model's bit for bit, whatever the precision of the run: checkpoints do not contain them,
and the folder of the trained model takes them from the source.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

import torch

from data_pipeline.errors import ConfigError
from trainer.models.adapters import is_adapter

PARTS = ("body", "embeddings")
"""Patterns for all parameters without a row per token, and for those with one: the embeddings, the head and its bias."""


def vocabulary_parameter_ids(module: torch.nn.Module) -> set[int]:
    """The `id` of each parameter that has a row per token."""
    model: Any = getattr(module, "model", module)
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    return {id(weight) for part in parts if part is not None for weight in part.parameters(recurse=False)}


def frozen_names(module: torch.nn.Module, patterns: Collection[str]) -> set[str]:
    """The names of the module's parameters that `patterns` freeze, with all names of tied weights.

    A pattern is `body`, `embeddings`, or the name of a parameter in transformers, where `*` matches anything.

    Raises:
        ConfigError: a pattern matches no parameter, or all parameters are frozen.
    """
    row_ids, names = vocabulary_parameter_ids(module), set[str]()
    named = dict(module.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matches = {name for name, weight in named.items() if _matches(name, id(weight) in row_ids, pattern)}
        if not matches:
            example = list(named)[len(named) // 2].removeprefix("model.")  # of the body, most likely
            raise ConfigError(f"{pattern!r} fits no parameter.", "train.frozen", f"They are named as {example} is.")
        names |= matches
    frozen_ids = {id(named[name]) for name in names}
    names = {name for name, weight in named.items() if id(weight) in frozen_ids}
    if len(names) == len(named):
        raise ConfigError("nothing is left to train.", "train.frozen", "Freeze fewer parameters.")
    return names


def names_without_adapters(module: torch.nn.Module) -> set[str]:
    """The names of the parameters that stay frozen beside adapters: all but those of adapters, embeddings and head."""
    row_ids = vocabulary_parameter_ids(module)
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, weight in named if id(weight) not in row_ids and not is_adapter(name)}


def freeze(module: torch.nn.Module, patterns: Collection[str], adapted: bool = False) -> None:
    """Freezes the parameters that `patterns` match or, if `adapted`, those beside adapters. Call it before making an optimizer.

    Raises:
        ConfigError: as `frozen_names`.
    """
    names = names_without_adapters(module) if adapted else frozen_names(module, patterns)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name not in names)


def is_fully_trained(module: torch.nn.Module) -> bool:
    """Whether no parameter is frozen, so checkpoints contain all of them."""
    return all(weight.requires_grad for weight in module.parameters())


def _matches(name: str, is_row: bool, pattern: str) -> bool:
    if pattern in PARTS:
        return is_row == (pattern == "embeddings")
    return fnmatchcase(name.removeprefix("model."), pattern)
