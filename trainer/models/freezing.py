"""Weights that are not trained: `TrainConfig.frozen`.

They stay what the source model has, to the last bit, whatever the run computes in: checkpoints leave them out, and the trained
model's folder takes them from the source.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

import torch

from data_pipeline.errors import ConfigError
from trainer.models.adapters import is_adapter

PARTS = ("body", "embeddings")
"""Names that stand for what has no row per token, and for what has one: the embeddings, the head and its bias."""


def vocabulary_parameter_ids(module: torch.nn.Module) -> set[int]:
    """Ids of the parameters that have a row per token."""
    model: Any = getattr(module, "model", module)
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    return {id(weight) for part in parts if part is not None for weight in part.parameters(recurse=False)}


def frozen_names(module: torch.nn.Module, patterns: Collection[str]) -> set[str]:
    """Names of the module's parameters that `patterns` freeze; of tied weights all names.

    A pattern is `body`, `embeddings`, or the name of a parameter as transformers has it, in which `*` stands for anything.

    Raises:
        ConfigError: a pattern fits no parameter, or all are frozen.
    """
    rows, found = vocabulary_parameter_ids(module), set[str]()
    named = dict(module.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        fits = {name for name, weight in named.items() if _fits(name, id(weight) in rows, pattern)}
        if not fits:
            example = list(named)[len(named) // 2].removeprefix("model.")  # of the body, most likely
            raise ConfigError(f"{pattern!r} fits no parameter.", "train.frozen", f"They are named as {example} is.")
        found |= fits
    same = {id(named[name]) for name in found}
    found = {name for name, weight in named.items() if id(weight) in same}
    if len(found) == len(named):
        raise ConfigError("nothing is left to be trained.", "train.frozen", "Freeze less.")
    return found


def names_without_adapters(module: torch.nn.Module) -> set[str]:
    """Names of the parameters that adapters leave as they are: all but those of adapters, embeddings and head."""
    rows = vocabulary_parameter_ids(module)
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, weight in named if id(weight) not in rows and not is_adapter(name)}


def freeze(module: torch.nn.Module, patterns: Collection[str], adapted: bool = False) -> None:
    """Keeps what `patterns` name from being trained, or where layers have adapters, those layers; before an optimizer is made.

    Raises:
        ConfigError: as `frozen_names`.
    """
    names = names_without_adapters(module) if adapted else frozen_names(module, patterns)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name not in names)


def is_fully_trained(module: torch.nn.Module) -> bool:
    """Whether checkpoints hold every parameter."""
    return all(weight.requires_grad for weight in module.parameters())


def _fits(name: str, is_row: bool, pattern: str) -> bool:
    if pattern in PARTS:
        return is_row == (pattern == "embeddings")
    return fnmatchcase(name.removeprefix("model."), pattern)
