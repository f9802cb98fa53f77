"""An encoder on text pairs: the vectors of this rank, and of all ranks, with the exact gradient."""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from transformers import PreTrainedModel

from data_pipeline.pairs.batch import PairBatch
from trainer.models import forward_check
from trainer.models.flops import Flops
from trainer.models.forward_check import ForwardCheck
from trainer.models.pooling import POOLINGS
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.objective import Gathered, Needs, Objective, PairVectors


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
        self._pool = POOLINGS[pooling]

    def flops(self) -> Flops:
        return Flops.of(self.model, head=False)

    def check(self, length: int) -> ForwardCheck:
        """Whether a text has the same vector in a padded batch as alone, by the model's own forward.

        Raises:
            ModelError: it has another.
        """
        return forward_check.check_padding(self, length)

    def use_check(self, found: ForwardCheck) -> None:
        """There is one way only."""

    def slow_reasons(self) -> list[str]:
        return []

    def compile_graph(self) -> None:
        """Not one of fixed shapes: each batch is as long as its longest text."""

    def compilable_layers(self) -> list[torch.nn.Module]:
        return []

    def forward(self, batch: PairBatch | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The losses of pairs; the vectors of (ids, mask), as `encode`, since ZeRO-3 needs a call of the whole module."""
        if isinstance(batch, tuple):
            return self.encode(*batch)
        return self.objective(self.represent(batch, self.objective.needs), batch)

    def represent(self, batch: PairBatch, needs: Needs) -> PairVectors:
        """Unit vectors of the pairs; every rank calls it."""
        assert needs.vectors, "an encoder of pairs has vectors only"
        anchors, documents = self.encode(*batch.anchors), self.encode(*batch.documents)
        everywhere = _gathered(*_pad_to_longest_rank(documents, batch.document_keys, batch.document_weights))
        if needs.all_anchors:
            return PairVectors(_gathered(anchors, batch.anchor_keys, batch.weights), everywhere)
        return PairVectors(Gathered(anchors, anchors, batch.anchor_keys, batch.weights, 0), everywhere)

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors [n, d]."""
        tokens = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize(self._pool(tokens, mask).float(), dim=1)


def _pad_to_longest_rank(
    vectors: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pads with rows of weight 0 to the longest rank's number of rows: ranks may differ in hard negatives."""
    if not dist.is_initialized():
        return vectors, keys, weights
    most = torch.tensor(len(vectors), device=vectors.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    more = int(most) - len(vectors)
    pad = torch.nn.functional.pad
    return pad(vectors, (0, 0, 0, more)), pad(keys, (0, more)), pad(weights, (0, more))


def _gathered(vectors: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor) -> Gathered:
    """The vectors of all ranks, in rank order; every rank has as many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Gathered(vectors, vectors, keys, weights, 0)
    others = [[torch.empty_like(part) for _ in range(dist.get_world_size())] for part in (keys, weights)]
    for parts, own in zip(others, (keys, weights), strict=True):
        dist.all_gather(parts, own.contiguous())
    everywhere = torch.cat(all_gather(vectors.contiguous()))
    return Gathered(vectors, everywhere, torch.cat(others[0]), torch.cat(others[1]), dist.get_rank() * len(vectors))
