"""Spherical interpolation of two models, tensor by tensor (Shoemake, SIGGRAPH 1985, doi:10.1145/325334.325242).

With the angle W between the tensors a and b, taken as vectors:

    theta = sin((1 - t) W) / sin(W) a + sin(t W) / sin(W) b

Where a and b are orthogonal, their average has 0.7 times their length; here the length stays between theirs. Shoemake has unit
vectors. Tensors keep their lengths, as is usual for models. Where sin(W) is below 1e-6, and for a tensor of zeros, the
interpolation is linear; the limit of the formula is the same unless b = -a, where there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError
from trainer.merging.merge import Column, Models, Needs, Recipe

if TYPE_CHECKING:
    import torch

_STRAIGHT = 1e-6
"""The sine below which the two directions are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slerp:
    """Interpolates two models on an arc."""

    position: float = 0.5
    """Where on the arc the result lies: 0 is the first model, 1 the second."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.position <= 1.0:
            raise ConfigError(f"position must lie between 0 and 1, got {self.position}.", "merge.methods.slerp")

    @property
    def needs(self) -> Needs:
        return Needs(most=2)

    def __call__(self, models: Models) -> Recipe:
        return Recipe(merge=self._interpolate)

    def _interpolate(self, column: Column) -> torch.Tensor:
        first, second = (tensor.double() for tensor in column.models)
        near, far = self._shares(_angle(first, second))
        return near * first + far * second

    def _shares(self, angle: float) -> tuple[float, float]:
        """The factors of the two tensors."""
        sine = math.sin(angle)
        if sine < _STRAIGHT:
            return 1 - self.position, self.position
        return math.sin((1 - self.position) * angle) / sine, math.sin(self.position * angle) / sine


def _angle(first: torch.Tensor, second: torch.Tensor) -> float:
    """The angle between two tensors, from 0 to pi; 0 if one of them is 0.

    2 atan2(|u - v|, |u + v|) of the unit vectors: the arccosine loses half of the digits of small angles (Kahan 2006).
    """
    lengths = first.norm(), second.norm()
    if min(lengths) == 0:
        return 0.0
    unit, other = first / lengths[0], second / lengths[1]
    return 2 * math.atan2(float((unit - other).norm()), float((unit + other).norm()))
