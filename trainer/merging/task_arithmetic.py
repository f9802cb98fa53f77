"""Task arithmetic: what training changed in each model is added to the base.

Ilharco et al., ICLR 2023 (arXiv:2212.04089), section 2. With base theta_0 and models theta_k:

    theta = theta_0 + sum_k lambda_k (theta_k - theta_0)

The paper has one lambda for all models, chosen on held-out data, and subtracts a model for a task to unlearn: a negative
lambda_k here. Without held-out data 0.4 is usual (Yadav et al. 2023, arXiv:2306.01708). With lambda_k = 1 / K it is
the uniform average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError
from trainer.merging.merge import Column, Models, Needs, Recipe, add_differences

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArithmetic:
    """Adds the differences of the models from their base."""

    weights: tuple[float, ...] = (0.4,)
    """What the difference of a model from the base counts: one number for all models, or one for each. A negative one
    unlearns what the model has learnt."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("weights are empty.", "weights", "Give one number, or one for each model.")

    @property
    def needs(self) -> Needs:
        return Needs(base=True, least=1)

    def __call__(self, models: Models) -> Recipe:
        """The recipe.

        Raises:
            ConfigError: there are several weights, but not one for each model.
        """
        if len(self.weights) not in (1, models.count):
            raise ConfigError(
                f"{len(self.weights)} weights do not fit {models.count} models.",
                "merge.methods.task_arithmetic.weights",
                "Give one number, or one for each model.",
            )
        weights = self.weights if len(self.weights) == models.count else self.weights * models.count

        def merge(column: Column) -> torch.Tensor:
            return add_differences(column, weights)

        return Recipe(merge=merge, weights=weights)
