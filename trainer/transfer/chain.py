"""A chain of methods: each places what those before it left.

`aligned+focus+fvt` is the name of a chain, as it stands in plans, tables and folders; a single method is a chain of one. What
the last leaves is drawn at random, as ever.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.errors import ConfigError
from trainer.transfer.methods import METHODS
from trainer.transfer.problem import Placement, Problem

_ALONE = ("scratch", "resize", "random")
"""Baselines that are about the whole model or all ids, or that place nothing."""


def parts(name: str) -> tuple[str, ...]:
    """The methods of a chain, in order."""
    return tuple(name.split("+"))


def check(name: str, key: str) -> None:
    """Refuses a chain that cannot run.

    Raises:
        ConfigError: a name that is no method, one that stands there twice, or a baseline among others.
    """
    methods = parts(name)
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"{method or name} is not a method.", key, f"Choose from: {', '.join(METHODS)}.")
        if methods.count(method) > 1:
            raise ConfigError(
                f"{method} stands twice in {name}.", key, "Name it once: a second time it would find nothing new."
            )
        if len(methods) > 1 and method in _ALONE:
            raise ConfigError(
                f"{method} cannot be part of a chain.", key, "What a chain leaves is drawn at random by itself."
            )  # fmt: skip


def is_from_scratch(name: str) -> bool:
    """Whether the rest of the model is drawn anew as well."""
    return any(METHODS[method].is_from_scratch for method in parts(name))


def needs_pairs(name: str, settings: Callable[[str], Any]) -> bool:
    """Whether a method of the chain learns from aligned pairs, and is not given files to learn from instead.

    Args:
        settings: a method's configuration, by its name.
    """
    return any(METHODS[method].learns_from == "pairs" and not _has_files(settings(method)) for method in parts(name))


def _has_files(settings: Any) -> bool:
    """Whether an embedder is given, or vectors and a dictionary: word vectors of the new language come from its text."""
    space = getattr(settings, "space", None)
    by_dictionary = space is not None and space.source_vectors is not None and space.dictionary is not None
    return by_dictionary or getattr(settings, "embedder", None) is not None


def paper(name: str) -> str:
    """Where its methods were published."""
    return "; ".join(METHODS[method].paper for method in parts(name))


def place(problem: Problem, name: str, settings: Callable[[str], Any]) -> Placement:
    """What all methods of the chain place; `Rows.by` says which one did.

    Args:
        settings: a method's configuration, by its name.
    """
    found: list[Placement] = []
    for method in parts(name):
        found.append(METHODS[method].place(problem, settings(method)))
        problem = problem.without(found[-1].ids)
    return found[0] if len(found) == 1 else _joined(found, problem.source_rows)


def _joined(found: list[Placement], source_rows: int) -> Placement:
    groups = [np.zeros(len(one.ids), np.uint16) if one.groups is None else one.groups[0] for one in found]
    of_source = next((one.groups[1] for one in found if one.groups is not None), np.zeros(source_rows, np.uint16))
    sizes = [len(one.ids) for one in found]
    return Placement(
        ids=np.concatenate([one.ids for one in found]),
        counts=np.concatenate([one.counts for one in found]),
        indices=np.concatenate([one.indices for one in found]),
        weights=np.concatenate([one.weights for one in found]),
        provenance=np.concatenate([np.broadcast_to(np.asarray(one.provenance, np.uint8), len(one.ids)) for one in found]),
        groups=(np.concatenate(groups), of_source),
        by=np.repeat(np.arange(1, len(found) + 1, dtype=np.uint8), sizes),
    )
