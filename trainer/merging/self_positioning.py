"""Self Positioning: the weights of models are searched by gradient on a few pairs (Li et al. 2024, arXiv:2410.15035).

With base theta_0 and differences tau_k = theta_k - theta_0 of K models that were trained for different tasks:

    theta(a, b) = theta_0 + lambda sum_k alpha_k tau_k,    alpha = softmax(a),    lambda = softplus(b)

a and b are trained by Adam on the contrastive loss L of a probe set in which all tasks count the same. Their gradient needs no
graph through the merge: dL / d(lambda alpha_k) = <dL/dtheta, tau_k>, one backward pass and K dot products. Weights, differences
and gradients may be partitioned over workers, which then add up K numbers.

The softmax, the softplus and the penalty on |lambda - 1| are our reading of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError, ModelError
from trainer.merging.merge import Column, Models, Needs, Recipe, add_differences

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfPositioning:
    """Searches the weights of models on training pairs."""

    steps: int = 100
    """Steps of the search; each reads `batch_size` pairs and all models."""
    learning_rate: float = 0.05
    """The rate of Adam, of numbers whose exponentials are the weights."""
    batch_size: int = 64
    """Pairs of a step, over all workers; a pair's negatives are the others."""
    penalty: float = 0.0
    """What the loss grows by where the weights sum to 1 more or 1 less than 1."""
    probe_pairs: int = 1000
    """Training pairs from which the steps draw, of each task as many; all if there are fewer."""
    zero_stage: int = 1
    """ZeRO stage of the search: under 3 no worker holds a whole model."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size - 1, self.probe_pairs - 1) < 1 or self.learning_rate <= 0 or self.penalty < 0:
            raise ConfigError(
                "steps must be at least 1, batch_size and probe_pairs at least 2, learning_rate above 0, penalty at least 0.",
                "merge.methods.self_positioning",
            )
        if self.zero_stage not in (1, 2, 3):
            raise ConfigError(f"zero_stage is 1, 2 or 3, got {self.zero_stage}.", "merge.methods.self_positioning")

    @property
    def needs(self) -> Needs:
        return Needs(base=True, probe="search", least=1)

    def __call__(self, models: Models) -> Recipe:
        """The recipe.

        Raises:
            ModelError: the search left the numbers.
        """
        weights = tuple(models.search())
        if not all(map(math.isfinite, weights)):
            raise ModelError("the search found no weights, the loss is not finite.", "self_positioning", "Check the models.")

        def merge(column: Column) -> torch.Tensor:
            return add_differences(column, weights)

        return Recipe(merge=merge, weights=weights)


class Position:
    """The weights during the search: they start equal, with the sum 1."""

    def __init__(self, settings: SelfPositioning, models: int) -> None:
        import torch

        self._penalty = settings.penalty
        self._shares = torch.zeros(models, dtype=torch.float64, requires_grad=True)
        self._scale = torch.tensor(math.log(math.e - 1), dtype=torch.float64, requires_grad=True)  # softplus(this) = 1
        self._adam = torch.optim.Adam([self._shares, self._scale], lr=settings.learning_rate)

    @property
    def weights(self) -> list[float]:
        """lambda alpha_k of each model."""
        return self._weights().tolist()

    def move(self, slopes: Sequence[float]) -> None:
        """One step of Adam.

        Args:
            slopes: <dL/dtheta, tau_k> of each model, at the present weights.
        """
        loss = self._weights() @ self._shares.new_tensor(slopes)
        if self._penalty:
            loss = loss + self._penalty * (self._scale_value() - 1).abs()
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    def _scale_value(self) -> torch.Tensor:
        import torch

        return torch.nn.functional.softplus(self._scale)

    def _weights(self) -> torch.Tensor:
        return self._scale_value() * self._shares.softmax(dim=0)
