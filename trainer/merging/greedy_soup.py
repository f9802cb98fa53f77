"""Greedy soup: the average of those models that do not make it worse.

Wortsman et al., ICML 2022 (arXiv:2203.05482), recipe 1. The models are sorted by their own score, the best first. Each is added
to the average if the score of the average does not fall:

    S = {1};  for k = 2 ... K:  S = S + {k}  if  score(mean_{S + {k}} theta) >= score(mean_S theta)

The paper scores on held-out data. Here it is retrieval among training pairs, which every model may have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.errors import ConfigError
from trainer.merging.merge import Models, Needs, Recipe, mean


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedySoup:
    """Averages the models that improve retrieval of training pairs."""

    probe_pairs: int = 1000
    """Training pairs on which retrieval is measured; all if there are fewer."""

    def __post_init__(self) -> None:
        if self.probe_pairs < 2:
            raise ConfigError(f"probe_pairs must be at least 2, got {self.probe_pairs}.", "merge.methods.greedy_soup")

    @property
    def needs(self) -> Needs:
        return Needs(probe="accuracy")

    def __call__(self, models: Models) -> Recipe:
        every = range(models.count)
        scores = [models.score(_equal_weights([place], models.count)) for place in every]
        ordered = sorted(every, key=lambda place: -scores[place])
        chosen, best = ordered[:1], scores[ordered[0]]
        for place in ordered[1:]:
            score = models.score(_equal_weights([*chosen, place], models.count))
            if score >= best:
                chosen, best = [*chosen, place], score
        chosen.sort()
        return Recipe(
            merge=lambda column: mean([column.models[place] for place in chosen]),
            weights=_equal_weights(chosen, models.count),
        )


def _equal_weights(chosen: Sequence[int], count: int) -> tuple[float, ...]:
    return tuple(1 / len(chosen) if place in chosen else 0.0 for place in range(count))
