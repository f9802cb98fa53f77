"""Language-model loss of a transformers model on packed rows, the vocabulary product at the targets' places only."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from data_pipeline.feed.targets import TargetBatch
from trainer.models.flops import Flops
from trainer.models.loading import position_offset


class PackedLM(torch.nn.Module):
    """`forward(batch)` is the negative log-likelihood of each of the batch's targets, fp32 [M].

    Attention stays within a document, and looks back only if `causal`; positions count from each document's start. The
    head runs on the M places that have a target, not on all B x L: for a large vocabulary that is most of the work. An
    architecture whose head is not known runs its own forward, with the same result.
    """

    def __init__(self, model: PreTrainedModel, causal: bool) -> None:
        super().__init__()
        self.model = model
        self._causal = causal
        self._offset = position_offset(model.config)
        found = [name for name in ("cls", "lm_head") if hasattr(model, name)]
        self._head = found[0] if found else None

    def flops(self) -> Flops:
        return Flops.of(self.model, self._head)

    def forward(self, batch: TargetBatch) -> torch.Tensor:
        logits = self.logits(batch)
        return torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")

    def logits(self, batch: TargetBatch) -> torch.Tensor:
        """[M, V]"""
        seen = batch.segments[:, None, :, None] == batch.segments[:, None, None, :]
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": seen.tril() if self._causal else seen,
            "position_ids": batch.positions + self._offset,
        }
        if self._causal:
            inputs["use_cache"] = False
        if self._head is None:
            return self.model(**inputs).logits.flatten(0, 1)[batch.places]
        hidden = self.model.base_model(**inputs)[0].flatten(0, 1)[batch.places]
        return getattr(self.model, self._head)(hidden)


def bits_per_byte(nll: float, targets: int, text_tokens: int, text_bytes: int) -> float:
    """From the mean loss of a target to bits per byte of text: comparable between tokenizers, unlike loss per token.

    Args:
        nll: summed negative log-likelihood of `targets` tokens, in nats.
        text_tokens, text_bytes: size of the text that the targets are a sample of.
    """
    return nll / targets * text_tokens / (text_bytes * math.log(2))
