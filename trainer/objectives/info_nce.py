"""InfoNCE with in-batch and hard negatives (van den Oord et al. 2018, arXiv:1807.03748, equation 4), and its kin.

With cosines s, temperature tau and candidates C_i, for anchor i with its own document d_i:

    l_i = log sum_{x in C_i} exp(s(., x) / tau) - s(q_i, d_i) / tau

Directions add candidates. `query_to_doc`: the documents, seen from q_i; `doc_to_query`: the anchors, seen from d_i;
`query_to_query` and `doc_to_doc`: the other texts of the same side. With `partition="joint"` all candidates share one sum
(the improved loss of GTE, Li et al. 2023, arXiv:2308.03281); with `per_direction` each direction has its own, and the loss is
their mean.

Harder negatives count more with `hardness`: alpha * s(., x), without gradient, is added to the logits of negatives (Lan et
al. 2025, arXiv:2503.04812, equation 5; for hard negatives only in EmbeddingGemma, arXiv:2509.20354). Harder pairs count more
with `focal`: the loss is multiplied by (1 - exp(-l_i)) ** gamma, without gradient (KaLM-Embedding-V2, arXiv:2506.20923). From
the same paper, `mixed_pairs` and `mixed_list` add negatives mixed from hard ones (`mixed_negatives`).

`progressive` lets negatives that score above the positive count little at first and more as training proceeds (PEG, Wu et al.
2023, arXiv:2311.11691): their logits are s (t + s) / tau, where t is the mean cosine of the positives in the batch, and t + s
has no gradient. PEG publishes no formula; this is that of CurricularFace (Huang et al. 2020, arXiv:2004.00288, equation 5),
with the mean of a batch, which is large, in place of a moving average, so that a resumed run needs no state.

`margin` leaves out candidates that score above the positive by more than that: they are likely to be positives, too (Qwen3
Embedding, Zhang et al. 2025, arXiv:2506.05176, section 3; with 0 it is GISTEmbed, arXiv:2402.16829, guided by the model
itself).

A pair with `in_batch` false shares no candidates: the only candidates of q_i are the documents of its own pair, in
`query_to_doc`, and no other pair sees its texts (as `no_in_batch_neg` of FlagEmbedding, which holds for whole batches).

Differences from the papers: a text is no negative if it or its partner has the text of d_i or q_i, on any rank. The fp32
logits exist for a block of anchors at a time, so that memory does not grow with the product of pairs and candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from data_pipeline.errors import ConfigError
from trainer.objectives.mixed_negatives import mixed_negatives
from trainer.objectives.objective import Gathered, Needs, PairVectors

if TYPE_CHECKING:
    import torch

    from data_pipeline.pairs.batch import PairBatch

DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
_LATER = {"identity": "unless default"}
"""Of settings that artefacts from before them lack."""
BLOCK_LOGITS = 1 << 24
"""Logits of a block."""
TIE = 1e-5
"""Cosines that differ by less are equal. Two texts that the cut to max_length makes equal differ in rounding, which depends on
the batches they are encoded in; a threshold between them would make the loss depend on the number of workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoNce:
    """Each anchor finds its positive among the documents of all ranks."""

    temperature: float = 0.05
    """Cosines are divided by it before the softmax."""
    directions: tuple[str, ...] = ("query_to_doc", "doc_to_query")
    """What must be distinguished. query_to_doc: an anchor's positive from other documents; always among them. doc_to_query: a
    positive's anchor from other anchors. query_to_query, doc_to_doc: an anchor or a document from the others of its side."""
    partition: Literal["per_direction", "joint"] = "per_direction"
    """Whether each direction has a softmax of its own, or all share one; `query_to_query` and `doc_to_doc` need `joint`."""
    hardness: float = 0.0
    """Added to the logit of a negative, multiplied by its cosine."""
    hardness_of: Literal["in_batch", "hard", "all"] = "all"
    """Which negatives `hardness` concerns: those of other pairs, the pair's own, or both."""
    focal: float = 0.0
    """The exponent by which pairs that are already distinguished count less."""
    progressive: bool = field(default=False, metadata=_LATER)
    """Whether negatives that score above the positive count the more, the higher the positives of the batch score."""
    margin: float | None = field(default=None, metadata=_LATER)
    """Candidates whose cosine exceeds the positive's by more than this are no negatives; none is left out when not given."""
    mixed_pairs: int = field(default=0, metadata=_LATER)
    """Negatives to add for each anchor, each mixed from two of its hard ones."""
    mixed_list: bool = field(default=False, metadata=_LATER)
    """Whether to add a negative mixed from all of an anchor's hard ones."""

    def __post_init__(self) -> None:
        same_side = {"query_to_query", "doc_to_doc"} & set(self.directions)
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}.")
        if min(self.hardness, self.focal, self.mixed_pairs, self.margin or 0.0) < 0:
            raise ConfigError(
                f"hardness, focal, mixed_pairs and margin must be at least 0, got {self.hardness}, {self.focal}, "
                f"{self.mixed_pairs} and {self.margin}."
            )
        if unknown := [name for name in self.directions if name not in DIRECTIONS]:
            raise ConfigError(f"{unknown[0]!r} is no direction.", "directions", f"Choose from {', '.join(DIRECTIONS)}.")
        if "query_to_doc" not in self.directions or len(set(self.directions)) < len(self.directions):
            raise ConfigError("directions need query_to_doc, and each once.", "directions", "It holds the positive.")
        if same_side and self.partition != "joint":
            raise ConfigError(
                f"{min(same_side)} has no positive of its own.", "directions", "Set partition=joint, or leave it out."
            )

    @property
    def needs(self) -> Needs:
        of_anchors = {"doc_to_query", "query_to_query"} & set(self.directions)
        return Needs(vectors=True, all_anchors=self.progressive or len(of_anchors) > 0)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; 0 for pairs of weight 0."""
        import torch
        from torch.utils.checkpoint import checkpoint

        rows = torch.arange(len(reps.anchors.own), device=reps.anchors.own.device)
        level = _mean_positive(reps) if self.progressive else None
        mixed = self._mixed_logits(reps)
        block = max(1, BLOCK_LOGITS // max(1, len(reps.documents.all)))
        if len(rows) <= block:
            return self._losses(reps, rows, level, mixed) * batch.weights
        blocks = zip(rows.split(block), mixed.split(block), strict=True)
        losses = [checkpoint(self._losses, reps, part, level, own, use_reentrant=False) for part, own in blocks]
        return torch.cat(losses) * batch.weights

    def _mixed_logits(self, reps: PairVectors) -> torch.Tensor:
        """The logits of the mixed negatives, [B, K]; -inf where there is none."""
        import torch

        if not self.mixed_pairs and not self.mixed_list:
            return reps.anchors.own.new_empty(len(reps.anchors.own), 0)
        vectors, is_there = mixed_negatives(reps, self.mixed_pairs, self.mixed_list, self.temperature)
        logits = torch.einsum("bd,bkd->bk", reps.anchors.own, vectors) / self.temperature
        return logits.masked_fill(~is_there, float("-inf"))

    def _losses(self, reps: PairVectors, rows: torch.Tensor, level: torch.Tensor | None, mixed: torch.Tensor) -> torch.Tensor:
        """The losses of some of this rank's pairs, fp32 [b].

        Args:
            level: the mean cosine of the positives, for `progressive`.
            mixed: the logits of these pairs' mixed negatives.
        """
        import torch

        logits = {direction: self._logits(reps, rows, direction, level) for direction in self.directions}
        forward = logits["query_to_doc"]
        own = forward.gather(1, (reps.documents.first + rows)[:, None])[:, 0]
        logits["query_to_doc"] = torch.cat([forward, mixed], dim=1)
        if self.partition == "joint":
            losses = torch.cat(list(logits.values()), dim=1).logsumexp(dim=1) - own
        else:
            # Both directions have the pair's own cosine as their positive.
            losses = torch.stack([each.logsumexp(dim=1) - own for each in logits.values()]).mean(dim=0)
        if reps.documents.in_batch is not None and len(logits) > 1:
            # A pair that shares no candidates has negatives in this direction only.
            shares = reps.documents.in_batch[reps.documents.first + rows]
            losses = torch.where(shares, losses, logits["query_to_doc"].logsumexp(dim=1) - own)
        if self.focal:
            losses = losses * (1 - torch.exp(-losses.detach())).clamp_min(0) ** self.focal
        return losses

    def _logits(self, reps: PairVectors, rows: torch.Tensor, direction: str, level: torch.Tensor | None) -> torch.Tensor:
        """The logits of a direction's candidates, fp32 [b, N]; -inf where one is no negative."""
        import torch

        near, far = direction.split("_to_")
        sides: dict[str, Gathered] = {"query": reps.anchors, "doc": reps.documents}
        seen_from, candidates = sides[near], sides[far]
        cosines = seen_from.own[rows] @ candidates.all.T
        cosines = cosines.to(torch.promote_types(cosines.dtype, torch.float32))
        positive = (reps.anchors.own[rows] * reps.documents.own[rows]).sum(dim=1, keepdim=True).detach()
        is_own_pair = candidates.owners[None] == seen_from.owners[seen_from.first + rows][:, None]
        places = torch.arange(len(candidates.all), device=rows.device)
        is_positive = (places[None] == candidates.first + rows[:, None]) & (near != far)
        logits = cosines / self.temperature
        if level is not None:
            above = (cosines.detach() > positive + TIE) & ~is_positive
            logits = torch.where(above, level + cosines.detach(), 1.0) * logits
        if self.hardness and direction == "query_to_doc":
            concerned = {"in_batch": ~is_own_pair, "hard": is_own_pair & ~is_positive, "all": ~is_positive}[self.hardness_of]
            logits = logits + self.hardness * cosines.detach() * concerned
        hidden = _same_texts(seen_from, seen_from.first + rows, candidates) | (candidates.weights <= 0)[None]
        if seen_from.in_batch is not None and candidates.in_batch is not None:
            shares = seen_from.in_batch[seen_from.first + rows][:, None] & candidates.in_batch[None]
            hidden = hidden | ~(shares | is_own_pair)
        if near == far:
            hidden = hidden | is_own_pair
        if self.margin is not None:
            hidden = hidden | (cosines.detach() > positive + self.margin + TIE)
        return logits.masked_fill(hidden & ~is_positive, float("-inf"))


def _mean_positive(reps: PairVectors) -> torch.Tensor:
    """The mean cosine of the positives of all ranks, without gradient."""
    count = len(reps.anchors.own)  # of every rank, whose documents begin with its positives
    ranks = len(reps.anchors.all) // count
    positives = reps.documents.all.unflatten(0, (ranks, -1))[:, :count].flatten(0, 1)
    weights = reps.anchors.weights
    cosines = (reps.anchors.all * positives).sum(dim=1).detach()
    return (cosines * weights).sum() / weights.sum().clamp_min(1e-9)


def _same_texts(seen_from: Gathered, rows: torch.Tensor, candidates: Gathered) -> torch.Tensor:
    """Whether a candidate or its partner has the text of the row or of its partner, bool [b, N]."""
    key, partner = seen_from.keys[rows][:, None], seen_from.partners[rows][:, None]
    same_key = (candidates.keys[None] == key) | (candidates.keys[None] == partner)
    same_partner = (candidates.partners[None] == key) | (candidates.partners[None] == partner)
    return same_key | same_partner
