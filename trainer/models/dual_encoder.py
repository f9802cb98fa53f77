"""An encoder on text pairs: the vectors of this rank, and of all ranks, with the exact gradient."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from transformers import PreTrainedModel

from data_pipeline.pairs.batch import Chunk, PairBatch
from trainer.models import bidirectional, forward_check
from trainer.models.exits import Exits
from trainer.models.flops import Flops
from trainer.models.forward_check import ForwardCheck
from trainer.models.pooling import places, pooling_of
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.objective import NO_PARTNER, Gathered, Needs, Objective, PairVectors


class DualEncoder(torch.nn.Module):
    """A `Trainable`: `forward(batch)` is the objective of each of this rank's pairs, fp32 [B].

    Each rank scores its own queries against the documents of all ranks. The gather is differentiable: its backward sums
    what every rank's loss says about this rank's vectors, so that the parameter gradients averaged over ranks are those
    of one process with the whole batch (`specs/embedder.md` 2.2).

    Args:
        objective: reads `PairVectors`; InfoNCE where not given.
    """

    def __init__(self, model: PreTrainedModel, pooling: str, objective: Objective | None = None) -> None:
        super().__init__()
        self.model = model
        self.objective = InfoNce() if objective is None else objective
        self._pooling = pooling
        self._exits: Exits | None = None

    def flops(self) -> Flops:
        return Flops.of(self.model, head=False)

    def check(self, length: int) -> ForwardCheck:
        """Whether a text has the same vector in a padded batch as alone, by the model's own forward.

        Raises:
            ModelError: it has another, or the model is to be bidirectional and is not.
        """
        bidirectional.check_flow(self.model)
        return forward_check.check_padding(self, length)

    def use_check(self, found: ForwardCheck) -> None:
        """There is one way only."""

    def slow_reasons(self) -> list[str]:
        return []

    def compile_graph(self) -> None:
        """Not one of fixed shapes: each batch is as long as its longest text."""

    def compilable_layers(self) -> list[torch.nn.Module]:
        return []

    def forward(self, batch: PairBatch | Chunk) -> torch.Tensor:
        """The losses of pairs; the vectors of a chunk, as `encode`, since ZeRO-3 needs a call of the whole module."""
        if isinstance(batch, tuple):
            return self.encode(*batch)
        return self.objective(self.represent(batch, self.objective.needs), batch)

    def represent(self, batch: PairBatch, needs: Needs) -> PairVectors:
        """Unit vectors of the pairs; every rank calls it, with as many chunks."""
        return self.arrange(torch.cat([self.encode(*chunk) for chunk in batch.chunks]), batch, needs)

    def arrange(self, vectors: torch.Tensor, batch: PairBatch, needs: Needs) -> PairVectors:
        """The sides of the pairs, gathered from all ranks, from the vectors of all chunks; every rank calls it."""
        assert needs.vectors, "an encoder of pairs has vectors only"
        pairs = len(batch.weights)
        in_order = vectors[batch.texts_in_order]
        first_pair = pairs * (dist.get_rank() if dist.is_initialized() else 0)
        every_pair = first_pair + torch.arange(pairs, device=vectors.device)
        anchors = Texts(in_order[:pairs], batch.anchor_keys, batch.positive_keys, every_pair, batch.weights, batch.in_batch)
        no_partner = torch.full_like(batch.negative_keys, NO_PARTNER)
        documents = Texts(
            in_order[pairs:],
            torch.cat([batch.positive_keys, batch.negative_keys]),
            torch.cat([batch.anchor_keys, no_partner]),
            first_pair + batch.owners,
            batch.weights[batch.owners],
            batch.in_batch[batch.owners],
        )
        return PairVectors(_gathered(anchors) if needs.all_anchors else _alone(anchors), _gathered(_pad_to_longest(documents)))

    def encode(self, ids: torch.Tensor, mask: torch.Tensor, skipped: torch.Tensor | None = None) -> torch.Tensor:
        """Unit vectors [n, d]; [n, exits + 1, d] with those of the objective's exits, the last layer's last."""
        behind = self.objective.needs.exits
        if behind and self._exits is None:  # not before: weights may be partitioned only now
            self._exits = Exits(self.model, behind)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = places(mask, skipped)
        vectors = self._unit(states, pooled)
        if self._exits is None:
            return vectors
        return torch.stack([*(self._unit(exit_states, pooled) for exit_states in self._exits.take()), vectors], dim=1)

    def _unit(self, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled token states, fp32 [n, d]."""
        vectors = pooling_of(self._pooling, self.model)(states, pooled)
        return torch.nn.functional.normalize(vectors.float(), dim=1)


class Texts(NamedTuple):
    """Texts of this rank, the fields as in `Gathered`."""

    vectors: torch.Tensor
    keys: torch.Tensor
    partners: torch.Tensor
    owners: torch.Tensor
    weights: torch.Tensor
    in_batch: torch.Tensor


def _pad_to_longest(texts: Texts) -> Texts:
    """Pads with texts of weight 0 to the longest rank's number of texts: ranks may differ in hard negatives."""
    if not dist.is_initialized():
        return texts
    most = torch.tensor(len(texts.vectors), device=texts.vectors.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    more, pad = int(most) - len(texts.vectors), torch.nn.functional.pad
    added = texts.vectors.new_zeros((more, *texts.vectors.shape[1:]))
    return Texts(torch.cat([texts.vectors, added]), *(pad(column, (0, more)) for column in texts[1:]))


def _alone(texts: Texts) -> Gathered:
    """The texts of this rank alone."""
    return _side(texts.vectors, texts, first=0)


def _gathered(texts: Texts) -> Gathered:
    """The texts of all ranks, in rank order; every rank has as many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return _alone(texts)
    columns = []
    for own in texts[1:]:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        columns.append(torch.cat(parts))
    everywhere = Texts(torch.cat(all_gather(texts.vectors.contiguous())), *columns)
    return _side(texts.vectors, everywhere, first=dist.get_rank() * len(texts.vectors))


def _side(own: torch.Tensor, texts: Texts, first: int) -> Gathered:
    """This rank's vectors, which begin at `first` among all texts."""
    vectors, keys, partners, owners, weights, in_batch = texts
    return Gathered(own, vectors, keys, partners, owners, weights, first, in_batch)
