"""Language-model loss of a transformers model on packed rows, without the work that is of no use.

Where a model's time goes when its vocabulary is large (`specs/performance.md`): the product with the vocabulary at places
without a target, logits that are stored, masks that keep attention off the fast kernels, and, on a GPU, launching small
kernels. So the head runs on targets only, some at a time; rows of one document have no mask; and the whole is one compiled
graph of fixed shapes.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from data_pipeline.feed.targets import TargetBatch
from trainer.models.flops import Flops
from trainer.models.graphs import compiled
from trainer.models.heads import head_of
from trainer.models.loading import position_offset
from trainer.models.packed_attention import PackedAttention
from trainer.objectives.linear_cross_entropy import IGNORED, chunked_cross_entropy, linear_cross_entropy


class PackedLM(torch.nn.Module):
    """`forward(batch)` is the negative log-likelihood of each of the batch's targets, fp32 [M].

    Attention stays within a document, and looks back only if `causal`; positions count from each document's start. An
    architecture whose head is not known (`heads.FAMILIES`) runs its own forward, with the same result.

    Args:
        share: of a row's tokens, the most that are targets; there is always room for as many.
    """

    def __init__(self, model: PreTrainedModel, causal: bool, share: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self._causal, self._share = causal, share
        self._offset = position_offset(model.config)
        self._head = head_of(model)
        self._attention = PackedAttention(model, causal)
        self._graph: Callable[..., torch.Tensor] = self._losses

    def flops(self) -> Flops:
        return Flops.of(self.model, None if self._head is None else self._head.name)

    def slow(self) -> list[str]:
        """What keeps this model from the fast path, in words."""
        kind = self.model.config.model_type
        heads = (
            [f"{kind} is trained by its own forward: logits at every place, not only at targets"] if self._head is None else []
        )
        return heads + self._attention.slow()

    def compile_graph(self) -> None:
        """From now on one graph of fixed shapes; the first batch of each shape takes a minute or more."""
        if self._head is not None:
            self._graph = compiled(self._losses)

    def layers(self) -> list[torch.nn.Module]:
        """Those of which each can be a graph of fixed shapes."""
        return [] if self._head is None else [part for part in self.modules() if isinstance(part, GradientCheckpointingLayer)]

    def forward(self, batch: TargetBatch) -> torch.Tensor:
        if self._head is None:
            return torch.nn.functional.cross_entropy(self.logits(batch).float(), batch.labels, reduction="none")
        inputs = self._attention.inputs(batch, self._offset)
        rows, length = batch.input_ids.shape
        # As many on every rank and in every step, so that graphs fit and ranks gather ZeRO-3's weights as often.
        room = max(0, rows * math.floor(length * self._share + 0.5) - len(batch.places))
        places, labels = (torch.nn.functional.pad(part, (0, room), value=value)
                          for part, value in ((batch.places, 0), (batch.labels, IGNORED)))  # fmt: skip
        return self._graph(inputs, places, labels)[: len(batch.places)]

    def logits(self, batch: TargetBatch) -> torch.Tensor:
        """[M, V]"""
        inputs = self._attention.inputs(batch, self._offset)
        if self._head is None:
            return self.model(**inputs).logits.flatten(0, 1)[batch.places]
        return self._head.output(self._head.transform(self._hidden(inputs, batch.places)))

    def _hidden(self, inputs: dict[str, Any], places: torch.Tensor) -> torch.Tensor:
        return self.model.base_model(**inputs)[0].flatten(0, 1)[places]

    def _losses(self, inputs: dict[str, Any], places: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert self._head is not None
        output, hidden = self._head.output, self._head.transform(self._hidden(inputs, places))
        if hasattr(output.weight, "ds_id"):  # ZeRO-3 gathers a layer's weights when the layer is called, not before
            return chunked_cross_entropy(output, hidden, labels)
        return linear_cross_entropy(hidden, output.weight, output.bias, labels)


def bits_per_byte(nll: float, targets: int, text_tokens: int, text_bytes: int) -> float:
    """From the mean loss of a target to bits per byte of text: comparable between tokenizers, unlike loss per token.

    Args:
        nll: summed negative log-likelihood of `targets` tokens, in nats.
        text_tokens, text_bytes: size of the text that the targets are a sample of.
    """
    return nll / targets * text_tokens / (text_bytes * math.log(2))
