"""TIES: trim small changes, elect a sign for each weight, average the changes of that sign.

Yadav et al., NeurIPS 2023 (arXiv:2306.01708), algorithm 1. With the differences tau_k = theta_k - theta_0:

    trim    tau_k keeps its largest values by magnitude, a share `density` of the whole model; the others become 0
    elect   gamma = sgn(sum_k tau_k)
    merge   theta = theta_0 + lambda mean_{k: sgn(tau_k) = gamma} tau_k,   theta_0 where no tau_k has that sign

Values that equal the smallest kept one are kept, too, as in the authors' code; mergekit trims each tensor by itself, and keeps
an exact number. Where the sum is 0, theta_0 stays, by the formula; mergekit takes the positive values there.

The threshold of a whole model is found without its task vector in memory: magnitudes are counted by the upper 15 bits of their
fp32 form, which sorts like an integer, then those in the right bin by the lower 16 bits. This takes two passes over the files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError
from trainer.merging.merge import Column, Models, Needs, Recipe, differences

if TYPE_CHECKING:
    import torch

_LOW_BITS = 16
_BINS = 1 << _LOW_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """Averages the large changes that agree in their sign."""

    density: float = 0.2
    """Share of the weights whose change is kept, the largest of each model."""
    scale: float = 1.0
    """What the averaged change counts."""

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ConfigError(f"density is a share above 0, got {self.density}.", "merge.methods.ties")

    @property
    def needs(self) -> Needs:
        return Needs(base=True, least=1)

    def __call__(self, models: Models) -> Recipe:
        thresholds = [0] * models.count if self.density == 1.0 else _thresholds(models, self.density)

        def merge(column: Column) -> torch.Tensor:
            assert column.base is not None
            return column.base.double() + self.scale * _agreed(column, thresholds)

        return Recipe(merge=merge)


def _agreed(column: Column, thresholds: list[int]) -> torch.Tensor:
    """The mean of the trimmed differences that have the sign of their sum; 0 where none has."""
    import torch

    trimmed = [
        torch.where(_magnitudes(difference) >= threshold, difference, 0.0)
        for difference, threshold in zip(differences(column), thresholds, strict=True)
    ]
    elected = torch.zeros_like(trimmed[0])
    for difference in trimmed:
        elected += difference
    elected.sign_()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for difference in trimmed:
        agrees = (difference.sign() == elected) & (difference != 0)
        total += difference * agrees
        count += agrees
    return total / count.clamp_min(1)


def _thresholds(models: Models, density: float) -> list[int]:
    """The smallest magnitude that each model keeps, as `_magnitudes` gives it."""
    upper = _counts(models, lambda model, magnitudes: magnitudes >> _LOW_BITS)
    kept = [max(1, int(density * int(counts.sum()))) for counts in upper]
    bins = [_bin_of(counts, rank) for counts, rank in zip(upper, kept, strict=True)]
    lower = _counts(models, lambda model, magnitudes: magnitudes[magnitudes >> _LOW_BITS == bins[model][0]] % _BINS)
    return [(high << _LOW_BITS) + _bin_of(counts, rank)[0] for (high, rank), counts in zip(bins, lower, strict=True)]


def _counts(models: Models, bins: Callable[[int, torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """How many weights of each model fall into each bin, int64 [models][bins]."""
    import torch

    totals = [torch.zeros(_BINS, dtype=torch.int64) for _ in range(models.count)]
    for column in models.columns():
        for model, difference in enumerate(differences(column)):
            totals[model] += torch.bincount(bins(model, _magnitudes(difference).flatten()), minlength=_BINS)
    return totals


def _bin_of(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin of the rank-th largest value (1 is the largest), and its rank within the bin."""
    from_above = counts.flip(0).cumsum(0)
    place = int((from_above < rank).sum())
    return len(counts) - 1 - place, rank - int(from_above[place] - counts.flip(0)[place])


def _magnitudes(difference: torch.Tensor) -> torch.Tensor:
    """The absolute values as fp32, read as integers of the same order, int32."""
    import torch

    return difference.abs().float().view(torch.int32)
