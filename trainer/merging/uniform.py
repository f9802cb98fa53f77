"""The uniform average of models (model soup: Wortsman et al., ICML 2022, arXiv:2203.05482): theta = mean_k theta_k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Uniform:
    """Averages with equal weights."""

    def __call__(self, weights: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The mean of each tensor, summed in fp64; integer tensors are those of the first model.

        Raises:
            ModelError: the models do not have the same tensors of the same shapes; the error names the first difference.
        """
        first = weights[0]
        for other, name in zip(weights[1:], names[1:], strict=True):
            differences = sorted(first.keys() ^ other.keys()) or [
                f"{key} ({tuple(first[key].shape)} and {tuple(other[key].shape)})"
                for key in first
                if first[key].shape != other[key].shape
            ]
            if differences:
                raise ModelError(
                    f"cannot be averaged with {names[0]}: they differ in {differences[0]}.",
                    name,
                    "Merge models of one architecture.",
                )
        return {key: _mean([model[key] for model in weights]) for key in first}


def _mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    import torch

    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(tensors[0].dtype)
