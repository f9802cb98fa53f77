"""LM-Cocktail: the better a model does on a few pairs, the more it counts.

Xiao et al., Findings of ACL 2024 (arXiv:2311.13534). With the loss L_k of model k on the probe pairs:

    w = softmax(-L / tau)        theta = sum_k w_k theta_k

Difference from the paper: the loss is InfoNCE, with the temperature 0.05 of the authors' package, over all probe pairs at once;
the package takes the mean over batches, with negatives that it draws at random. Its losses are therefore smaller, and its
weights nearer to each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.errors import ConfigError, ModelError
from trainer.merging.merge import Models, Needs, Recipe, weighted_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class LmCocktail:
    """Weighs models by their loss on training pairs."""

    temperature: float = 5.0
    """Losses are divided by it; the higher, the more equal are the weights."""
    probe_pairs: int = 1000
    """Training pairs on which the loss is measured; all if there are fewer."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.probe_pairs < 2:
            raise ConfigError(
                f"temperature must be above 0 and probe_pairs at least 2, got {self.temperature} and {self.probe_pairs}.",
                "merge.methods.lm_cocktail",
            )

    @property
    def needs(self) -> Needs:
        return Needs(probe="loss")

    def __call__(self, models: Models) -> Recipe:
        """The recipe.

        Raises:
            ModelError: the loss of a model is not finite.
        """
        losses = [models.score([float(i == k) for i in range(models.count)]) for k in range(models.count)]
        if wrong := [number for number, loss in enumerate(losses) if not math.isfinite(loss)]:
            raise ModelError(f"the loss of model {wrong[0]} is not finite.", "merge.models", "Leave it out.")
        weights = self._softmax(losses)
        return Recipe(merge=lambda column: weighted_sum(column.models, weights), weights=weights)

    def _softmax(self, losses: list[float]) -> tuple[float, ...]:
        least = min(losses)
        shares = [math.exp((least - loss) / self.temperature) for loss in losses]
        return tuple(share / sum(shares) for share in shares)
