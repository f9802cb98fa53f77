"""Distillation from a teacher's vectors, such as those of the embedder before this training (Goswami et al. 2025).

With unit vectors z by the student and t by the teacher, of an anchor and of each document of its pair:

    l = (1 - cos(z_q, t_q)) + mean_d (1 - cos(z_d, t_d))

"Query Drift Compensation" (arXiv:2506.00037, section 3) adds this to the contrastive loss, so that an index of old vectors
serves the new model for longer. For unit vectors, 1 - cos is half the squared distance of Reimers and Gurevych (EMNLP 2020,
arXiv:2004.09813), by which a student learns a teacher's space in a new language.

The vectors are columns of the rows, so the teacher may have any architecture, vocabulary and prompts, and needs no memory
while the student trains. With `embed.nested`, the student's vector of each width follows the leading values of the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError
from trainer.objectives.objective import Needs, PairVectors
from trainer.objectives.own_documents import by_pair

if TYPE_CHECKING:
    import torch

    from data_pipeline.pairs.batch import PairBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingDistillation:
    """Each text keeps its vector by the teacher."""

    weight: float = 1.0
    """What this loss counts beside others."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ConfigError(f"weight must be above 0, got {self.weight}.", "weight")

    @property
    def needs(self) -> Needs:
        return Needs(vectors=True, teacher=True)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; 0 for pairs of weight 0.

        Raises:
            ConfigError: the student's vectors are wider than the teacher's.
        """
        import torch

        width = reps.anchors.own.shape[-1]
        if width > batch.teacher.shape[-1]:
            raise ConfigError(
                f"the teacher's vectors have {batch.teacher.shape[-1]} dimensions, the student's {width}.",
                "embed.teacher",
                "Take a teacher of the same width or a wider one.",
            )
        theirs = torch.nn.functional.normalize(batch.teacher[:, :width].to(reps.anchors.own.dtype), dim=1)
        pairs = len(batch.weights)
        places, is_there = by_pair(batch.owners, pairs)
        documents = 1 - (reps.documents.own[: len(batch.owners)] * theirs[pairs:]).sum(dim=1)
        mean = (documents[places] * is_there).sum(dim=1) / is_there.sum(dim=1)
        return ((1 - (reps.anchors.own * theirs[:pairs]).sum(dim=1)) + mean) * batch.weights
