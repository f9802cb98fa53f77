"""Distillation from a teacher's scores of pairs, such as those of a cross-encoder, which are a column of the rows.

With the cosines s of a pair's documents, the first its positive, their scores z by the teacher, and a scale a:

    DSE          mean_j (a s_j - z_j)^2                          Barkan et al. 2020, arXiv:1908.05161
    MarginMSE    mean_{j > 0} (a (s_0 - s_j) - (z_0 - z_j))^2    Hofstätter et al. 2020, arXiv:2010.02666
    score KL     KL(softmax(z / T) || softmax(s / tau))          Hinton et al. 2015, arXiv:1503.02531, among a pair's documents

Documents without a score count for nothing. A pair whose documents have too few scores has a loss of 0.

Difference from DSE: its student scores with a network on both vectors, so it cannot search an index; here the score is the
cosine. The paper mixes this loss with that of the labels: `embed.objective=[info_nce, dse]`.
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
class Dse:
    """The cosine of a text and each document follows the teacher's score of the two."""

    scale: float = 10.0
    """The teacher's score of two equal texts, which a cosine of 1 stands for: about 10 for logits, 1 for probabilities."""
    weight: float = 1.0
    """What this loss counts beside others."""

    def __post_init__(self) -> None:
        _check_positive(scale=self.scale, weight=self.weight)

    @property
    def needs(self) -> Needs:
        return Needs(vectors=True, scores=True)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; 0 for pairs of weight 0."""
        cosines, scores, is_scored = _scored(reps, batch)
        return _mean((self.scale * cosines - scores) ** 2, is_scored) * batch.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginMse:
    """The positive exceeds each hard negative by as much as in the teacher's scores."""

    scale: float = 10.0
    """The difference of the teacher's scores that a difference of cosines of 1 stands for."""
    weight: float = 1.0
    """What this loss counts beside others."""

    def __post_init__(self) -> None:
        _check_positive(scale=self.scale, weight=self.weight)

    @property
    def needs(self) -> Needs:
        return Needs(vectors=True, scores=True)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; 0 for pairs of weight 0."""
        cosines, scores, is_scored = _scored(reps, batch)
        margins, their_margins = (values[:, :1] - values[:, 1:] for values in (cosines, scores))
        is_scored = is_scored[:, 1:] & is_scored[:, :1]
        return _mean((self.scale * margins - their_margins) ** 2, is_scored) * batch.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreKl:
    """A pair's documents have the teacher's probabilities."""

    temperature: float = 0.05
    """Cosines are divided by it before the softmax."""
    teacher_temperature: float = 1.0
    """The teacher's scores are divided by it before theirs."""
    weight: float = 1.0
    """What this loss counts beside others."""

    def __post_init__(self) -> None:
        _check_positive(temperature=self.temperature, teacher_temperature=self.teacher_temperature, weight=self.weight)

    @property
    def needs(self) -> Needs:
        return Needs(vectors=True, scores=True)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; 0 for pairs of weight 0."""
        import torch

        cosines, scores, is_scored = _scored(reps, batch)
        least = torch.finfo(cosines.dtype).min  # not -inf, which makes NaN of a pair without scores
        ours = (cosines / self.temperature).masked_fill(~is_scored, least).log_softmax(dim=1)
        theirs = (scores / self.teacher_temperature).masked_fill(~is_scored, least).log_softmax(dim=1)
        terms = (theirs.exp() * (theirs - ours)).masked_fill(~is_scored, 0.0)
        return terms.sum(dim=1) * batch.weights


def _check_positive(**settings: float) -> None:
    """Checks that each setting is above 0; else raises ConfigError."""
    for name, value in settings.items():
        if value <= 0:
            raise ConfigError(f"{name} must be above 0, got {value}.", name)


def _scored(reps: PairVectors, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cosines and the teacher's scores of each pair's documents, fp32 [B, most], and which have a score, bool."""
    places, is_there = by_pair(batch.owners, len(batch.weights))
    documents = reps.documents.own[places]
    cosines = (reps.anchors.own[:, None] * documents).sum(dim=2)
    scores = batch.scores[places].to(cosines.dtype)
    is_scored = is_there & scores.isfinite()
    return cosines, scores.masked_fill(~is_scored, 0.0), is_scored


def _mean(values: torch.Tensor, is_counted: torch.Tensor) -> torch.Tensor:
    """The mean of the counted values of each row, [B]; 0 where there is none."""
    return (values * is_counted).sum(dim=1) / is_counted.sum(dim=1).clamp_min(1)
