"""What a metric returns, and how two models differ on the same bootstrap samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The scores of one model by one metric."""

    scores: dict[str, Any]
    """A JSON object: of all data."""
    by_language: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same of each language, if there are several."""
    replicates: dict[str, Any] = field(default_factory=dict)
    """The values [b] of scores on b bootstrap samples, under their names and as deeply nested as `scores`; none of scores
    without an interval. Sample i has the same queries for every model."""


def by_language(langs: Sequence[str], among: Callable[[NDArray[np.int64]], T]) -> dict[str, T]:
    """What `among` says of the places of each language, in alphabetical order; empty if there is only one."""
    names, of_each = np.unique(np.array(langs), return_inverse=True)
    return {str(name): among(np.flatnonzero(of_each == number)) for number, name in enumerate(names)} if len(names) > 1 else {}


def differences(model: Measured, base: Measured) -> dict[str, Any]:
    """How much each score of `model` lies above that of `base`, with a paired bootstrap (Koehn, EMNLP 2004).

    Returns:
        For each score with replicates, under its name: `difference`, its 95 % `interval`, and whether it `is_significant`,
        which means that 0 is outside the interval.
    """
    return _differences(model.scores, base.scores, model.replicates, base.replicates)


def _differences(own: Mapping, other: Mapping, own_replicates: Mapping, other_replicates: Mapping) -> dict[str, Any]:
    """`differences` of mappings that are nested alike."""
    found = {}
    for name, values in own_replicates.items():
        if isinstance(values, Mapping):
            found[name] = _differences(own[name], other[name], values, other_replicates[name])
        else:
            low, high = np.quantile(values - other_replicates[name], (0.025, 0.975)).tolist()
            found[name] = {
                "difference": own[name] - other[name],
                "interval": [low, high],
                "is_significant": low > 0 or high < 0,
            }
    return found
