"""A chain of methods: each places the tokens that the methods before it left.

A chain is written `aligned+focus+fvt`, also in plans, tables and folder names; a single method is a chain of one. Tokens
that the last method leaves get random rows.
"""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.errors import ConfigError
from trainer.transfer.methods import METHODS
from trainer.transfer.plan import DRAWS, TransferPlan
from trainer.transfer.problem import Placement, Problem

_ALONE = ("scratch", "resize", "random")
"""Baselines that concern the whole model or all ids, or that place nothing."""


def parts(name: str) -> tuple[str, ...]:
    """The methods of a chain, in order."""
    return tuple(name.split("+"))


def check(name: str, key: str) -> None:
    """Rejects a chain that cannot run.

    Raises:
        ConfigError: an unknown method, a method that occurs twice, or a baseline among other methods.
    """
    methods = parts(name)
    for method in methods:
        if method not in METHODS:
            near = difflib.get_close_matches(method.lower(), METHODS, n=1)
            fix = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{method or name} is not a method.", key, f"{fix}Choose from: {', '.join(METHODS)}.")
        if methods.count(method) > 1:
            raise ConfigError(
                f"{method} occurs twice in {name}.", key, "Name it once: the second time it has no tokens left to place."
            )
        if len(methods) > 1 and method in _ALONE:
            raise ConfigError(
                f"{method} cannot be part of a chain.", key, "Leave it out: tokens that a chain leaves get random rows anyway."
            )


def is_from_scratch(name: str) -> bool:
    """Whether the rest of the model gets random weights as well."""
    return any(METHODS[method].is_from_scratch for method in parts(name))


def needs_pairs(name: str, settings: Callable[[str], Any]) -> bool:
    """Whether a method of the chain learns from text pairs and has no files to use instead.

    Args:
        settings: the config of a method, by name.
    """
    return any(METHODS[method].learns_from == "pairs" and not _has_files(settings(method)) for method in parts(name))


def _has_files(settings: Any) -> bool:
    """Whether an embedder is set, or source vectors and a dictionary: the new language's vectors come from its text."""
    space = getattr(settings, "space", None)
    by_dictionary = space is not None and space.source_vectors is not None and space.dictionary is not None
    return by_dictionary or getattr(settings, "embedder", None) is not None


def paper(name: str) -> str:
    """The papers of its methods."""
    return "; ".join(METHODS[method].paper for method in parts(name))


def place(problem: Problem, name: str, settings: Callable[[str], Any]) -> Placement:
    """Runs all methods of the chain. `Placement.by` names the method that placed each token.

    Args:
        settings: the config of a method, by name.
    """
    placements: list[Placement] = []
    for method in parts(name):
        placements.append(METHODS[method].place(problem, settings(method)))
        problem = problem.without(placements[-1].ids)
    return placements[0] if len(placements) == 1 else _concatenate(placements, problem.source_rows)


def shortfall(plan: TransferPlan) -> str:
    """A warning if the chain left most of the new tokens to random rows; else empty."""
    new = plan.groups()["new"]
    drawn = int(np.isin(plan.provenance[new], DRAWS).sum())
    if plan.method in _ALONE or 2 * drawn <= len(new):
        return ""
    return f"{plan.method} placed {len(new) - drawn:,} of {len(new):,} new tokens; the others start at random"


def _concatenate(placements: list[Placement], source_rows: int) -> Placement:
    """Joins the placements of a chain's methods; `by` holds the number (from 1) of the method that placed each row."""
    groups = [
        np.zeros(len(placement.ids), np.uint16) if placement.groups is None else placement.groups[0] for placement in placements
    ]
    source_groups = next(
        (placement.groups[1] for placement in placements if placement.groups is not None), np.zeros(source_rows, np.uint16)
    )
    sizes = [len(placement.ids) for placement in placements]
    return Placement(
        ids=np.concatenate([placement.ids for placement in placements]),
        counts=np.concatenate([placement.counts for placement in placements]),
        indices=np.concatenate([placement.indices for placement in placements]),
        weights=np.concatenate([placement.weights for placement in placements]),
        provenance=np.concatenate(
            [np.broadcast_to(np.asarray(placement.provenance, np.uint8), len(placement.ids)) for placement in placements]
        ),
        groups=(np.concatenate(groups), source_groups),
        by=np.repeat(np.arange(1, len(placements) + 1, dtype=np.uint8), sizes),
    )
