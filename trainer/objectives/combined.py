"""A weighted sum of objectives on the same vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.objectives.objective import Needs, Objective, PairVectors

if TYPE_CHECKING:
    import torch

    from data_pipeline.pairs.batch import PairBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The sum of several losses, each times its weight."""

    parts: tuple[tuple[Objective, float], ...]
    """Objectives and what each counts."""

    @property
    def needs(self) -> Needs:
        """All that any of them needs."""
        needs = [part.needs for part, _ in self.parts]
        return Needs(
            vectors=True,
            all_anchors=any(each.all_anchors for each in needs),
            scores=any(each.scores for each in needs),
            teacher=any(each.teacher for each in needs),
        )

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]."""
        losses = [weight * part(reps, batch) for part, weight in self.parts]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total
