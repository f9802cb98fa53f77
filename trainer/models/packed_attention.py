"""What a transformers model is told so that packed documents do not see each other.

A row of one document needs no mask: attention then runs in its fastest kernels. Else a GPU gets the blocks of the mask that are
not empty (FlexAttention, Dong et al. 2024, arXiv:2412.05496) and skips the others; a CPU gets the whole mask.
"""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_pipeline.feed.targets import TargetBatch
from trainer.models import cpu_dropout

_NAME = "scion_packed"
_DROPOUTS = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")


def _attention(
    module: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, blocks: Any = None, **options: Any
) -> Any:
    """transformers' own FlexAttention for blocks, its SDPA for a whole mask or none; ours where a CPU drops weights."""
    if options.get("dropout") and query.device.type == "cpu" and not torch.compiler.is_compiling():
        sees = attention_mask
        if sees is None and getattr(module, "is_causal", False):
            sees = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        done = cpu_dropout.attention(query, key, value, sees, scaling, options["dropout"])
        return done.transpose(1, 2).contiguous(), None
    kind, mask = ("sdpa", attention_mask) if blocks is None else ("flex_attention", blocks)
    return ALL_ATTENTION_FUNCTIONS[kind](module, query, key, value, mask, **options)


AttentionInterface.register(_NAME, _attention)


class PackedAttention:
    """Makes the arguments of `model`'s forward from batches."""

    def __init__(self, model: PreTrainedModel, causal: bool) -> None:
        self._causal = causal
        model.set_attn_implementation(_NAME)
        dropout = max(float(getattr(model.config, name, None) or 0.0) for name in _DROPOUTS)
        self.blocks = torch.cuda.is_available() and not dropout

    def slow(self) -> list[str]:
        """Why a GPU does not skip what documents do not see of each other."""
        if self.blocks or not torch.cuda.is_available():
            return []
        return ["packed rows have a whole mask: FlexAttention knows no dropout, set that of attention to 0 in config.json"]

    def inputs(self, batch: TargetBatch, offset: int) -> dict[str, Any]:
        """Keyword arguments; `offset` is the position id of a document's first token."""
        told: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.positions + offset}
        if self._causal:
            told["use_cache"] = False
        if batch.packed and self.blocks:
            told["blocks"] = self._blocks(batch.segments)  # models hand on what they do not know; some look into masks
        elif batch.packed:
            told["attention_mask"] = self._mask(batch.segments)
        return told

    def _mask(self, segments: torch.Tensor) -> torch.Tensor:
        """bool [B, 1, L, L]"""
        seen = segments[:, None, :, None] == segments[:, None, None, :]
        return seen.tril() if self._causal else seen

    def _blocks(self, segments: torch.Tensor) -> BlockMask:
        causal, (rows, length) = self._causal, segments.shape

        def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            same = segments[row, query] == segments[row, key]
            return same & (query >= key) if causal else same

        return create_block_mask(sees, rows, None, length, length, device=segments.device)
