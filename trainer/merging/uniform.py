"""The uniform average of models (model soup: Wortsman et al., ICML 2022, arXiv:2203.05482): theta = mean_k theta_k."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.merging.merge import Models, Needs, Recipe, mean


@dataclass(frozen=True, slots=True)
class Uniform:
    """Averages with equal weights."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, models: Models) -> Recipe:
        return Recipe(merge=lambda column: mean(column.models), weights=(1 / models.count,) * models.count)
