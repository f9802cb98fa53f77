"""InfoNCE with in-batch and hard negatives (van den Oord et al. 2018, arXiv:1807.03748, equation 4).

With cosines s and temperature tau, for query i with its own document d_i:

    l_i = -log( exp(s(q_i, d_i) / tau) / sum_j exp(s(q_i, d_j) / tau) )

The sum leaves out documents that have the text of d_i but are not d_i: they are not negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ConfigError
from trainer.objectives.objective import Gathered, Needs, PairVectors

if TYPE_CHECKING:
    import torch

    from data_pipeline.pairs.batch import PairBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoNce:
    """Each anchor finds its positive among the documents of all ranks."""

    temperature: float = 0.05
    """Cosines are divided by it before the softmax."""
    symmetric: bool = True
    """Whether positives also have to find their anchors."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}.")

    @property
    def needs(self) -> Needs:
        return Needs(vectors=True, all_anchors=self.symmetric)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; 0 for pairs of weight 0."""
        anchors, documents = reps
        losses = self._one_way(anchors.own, documents)
        if self.symmetric:
            losses = (losses + self._one_way(documents.own[: len(anchors.own)], anchors)) / 2
        return losses * batch.weights

    def _one_way(self, queries: torch.Tensor, documents: Gathered) -> torch.Tensor:
        import torch

        own = documents.first + torch.arange(len(queries), device=queries.device)
        return info_nce(queries, documents.all, own, documents.keys, documents.weights, self.temperature)


def info_nce(
    queries: torch.Tensor,
    documents: torch.Tensor,
    own: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The loss of each query, fp32 [B].

    Args:
        queries: float [B, d], unit rows.
        documents: float [D, d], unit rows; those of all ranks where negatives are gathered.
        own: int [B], which document belongs to each query.
        keys: int [D], equal for documents of equal text.
        weights: float [D], 0 for padding.
        temperature: tau.
    """
    import torch

    scores = (queries @ documents.T).float() / temperature
    is_own = torch.arange(len(documents), device=own.device)[None] == own[:, None]
    same_text = keys[None] == keys[own][:, None]
    hidden = (same_text | (weights <= 0)[None]) & ~is_own
    return torch.nn.functional.cross_entropy(scores.masked_fill(hidden, float("-inf")), own, reduction="none")
