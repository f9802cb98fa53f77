"""Contrastive loss of an encoder on pairs, with the negatives of all ranks and the exact gradient."""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from transformers import PreTrainedModel

from data_pipeline.pairs.batch import PairBatch
from trainer.models import forward_check
from trainer.models.flops import Flops
from trainer.models.forward_check import Checked
from trainer.models.pooling import POOLINGS
from trainer.objectives.infonce import info_nce


class DualEncoder(torch.nn.Module):
    """`forward(batch)` is the loss of each of this rank's pairs, fp32 [B].

    Each rank scores its own queries against the documents of all ranks. The gather is differentiable: its backward sums
    what every rank's loss says about this rank's vectors, so that the parameter gradients averaged over ranks are those
    of one process with the whole batch (`specs/embedder.md` 2.2).
    """

    def __init__(self, model: PreTrainedModel, pooling: str, temperature: float, symmetric: bool) -> None:
        super().__init__()
        self.model = model
        self._pool = POOLINGS[pooling]
        self._temperature, self._symmetric = temperature, symmetric

    def flops(self) -> Flops:
        return Flops.of(self.model, head=False)

    def check(self, length: int) -> Checked:
        """Whether a text has the same vector in a padded batch as alone, by the model's own forward.

        Raises:
            ModelError: it has another.
        """
        return forward_check.check_padding(self, length)

    def settle(self, found: Checked) -> None:
        """There is one way only."""

    def slow(self) -> list[str]:
        return []

    def compile_graph(self) -> None:
        """Not one of fixed shapes: each batch is as long as its longest text."""

    def layers(self) -> list[torch.nn.Module]:
        return []

    def forward(self, batch: PairBatch | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The losses of pairs; of ids and mask the vectors, as `encode`, since ZeRO-3 needs a call of the whole module."""
        if isinstance(batch, tuple):
            return self.encode(*batch)
        anchors, documents = self.encode(*batch.anchors), self.encode(*batch.documents)
        weights = batch.weights
        documents, document_keys, document_weights = _filled(documents, batch.document_keys, batch.document_weights)
        all_documents, keys, present = _gathered(documents, document_keys, document_weights)
        rank = dist.get_rank() if dist.is_initialized() else 0
        own = rank * len(documents) + torch.arange(len(anchors), device=anchors.device)
        losses = info_nce(anchors, all_documents, own, keys, present, self._temperature)
        if self._symmetric:
            all_anchors, keys, present = _gathered(anchors, batch.anchor_keys, weights)
            own = rank * len(anchors) + torch.arange(len(anchors), device=anchors.device)
            backward = info_nce(documents[: len(anchors)], all_anchors, own, keys, present, self._temperature)
            losses = (losses + backward) / 2
        return losses * weights

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors [n, d]."""
        tokens = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize(self._pool(tokens, mask).float(), dim=1)


def _filled(
    vectors: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of weight 0 until every rank has as many: hard negatives may differ in number."""
    if not dist.is_initialized():
        return vectors, keys, weights
    most = torch.tensor(len(vectors), device=vectors.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    more = int(most) - len(vectors)
    return (
        torch.nn.functional.pad(vectors, (0, 0, 0, more)),
        torch.nn.functional.pad(keys, (0, more)),
        torch.nn.functional.pad(weights, (0, more)),
    )


def _gathered(
    vectors: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of all ranks, in rank order; gradients flow back to the rank that they came from."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors, keys, weights
    others = [[torch.empty_like(part) for _ in range(dist.get_world_size())] for part in (keys, weights)]
    for parts, own in zip(others, (keys, weights), strict=True):
        dist.all_gather(parts, own.contiguous())
    return torch.cat(all_gather(vectors.contiguous())), torch.cat(others[0]), torch.cat(others[1])
