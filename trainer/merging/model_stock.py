"""Model Stock: between the average of the models and their base, tensor by tensor.

Jang et al., ECCV 2024 (arXiv:2403.19522). With the mean cosine c of the differences theta_k - theta_0 of K models:

    t = K c / (1 + (K - 1) c)        theta = t mean_k theta_k + (1 - t) theta_0

This is the point nearest to the centre of the models that could have been trained, on the plane through the given ones and the
base: where the models changed a tensor in the same direction, their average counts, where they changed it at random, the base.

Differences from the paper: c is at least 0, so that models which contradict each other leave the base as it is; the formula
would go beyond it, and has a pole at c = -1 / (K - 1). A difference of 0 has the cosine 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from trainer.merging.merge import Column, Models, Needs, Recipe, differences

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ModelStock:
    """Averages where models agree, and keeps the base where they do not."""

    @property
    def needs(self) -> Needs:
        return Needs(base=True)

    def __call__(self, models: Models) -> Recipe:
        return Recipe(merge=_merge)


def _merge(column: Column) -> torch.Tensor:
    """The base and the share t of the mean difference, t = k cos / (1 + (k - 1) cos) for k models (section 4.1)."""
    assert column.base is not None
    found = list(differences(column))
    cosine = _mean_cosine(found)
    share = len(found) * cosine / (1 + (len(found) - 1) * cosine)
    mean_difference = found[0]
    for difference in found[1:]:
        mean_difference = mean_difference + difference
    return column.base.double() + share * (mean_difference / len(found))


def _mean_cosine(vectors: list[torch.Tensor]) -> float:
    """The mean cosine of all pairs, at least 0."""
    flat = [vector.flatten() for vector in vectors]
    lengths = [float(vector.norm()) for vector in flat]
    cosines = [
        float(flat[i] @ flat[j]) / (lengths[i] * lengths[j]) if lengths[i] and lengths[j] else 0.0
        for i, j in combinations(range(len(flat)), 2)
    ]
    return min(1.0, max(0.0, sum(cosines) / len(cosines)))
