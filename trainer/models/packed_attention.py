"""Keeps packed documents apart with transformers' own masks.

transformers calls a mask function for every kind of mask that a model needs: causal or not, windowed, chunked. Ours adds one
condition to each: a token attends only to its own document. Windows and all other properties of the model's masks are kept.

Four kernels, from fast to general. FlexAttention (Dong et al. 2024, arXiv:2412.05496) skips the empty blocks of a mask; it
supports soft caps and sinks, but no dropout. SDPA reads the whole mask; it supports neither soft caps nor sinks. The model's
own eager attention supports everything. A row of one document needs no mask if the model needs none.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import and_masks, eager_mask, flex_attention_mask, sdpa_mask

from trainer.models import cpu_dropout

Kernel = Literal["flex", "blocks", "sdpa", "eager"]
"""`flex` gives rows without a mask to SDPA; `blocks` gives them to FlexAttention too."""
_NAMES: dict[Kernel, str] = {"flex": "flex", "blocks": "blocks", "sdpa": "mask", "eager": "scores"}
_UNSUPPORTED_BY_SDPA = ("softcap", "s_aux")
"""Options of an attention that change its scores and that SDPA does not support."""


@dataclass(slots=True)
class _Rows:
    """The rows of the current forward. An object, because a compiled graph reads its attributes again in every call."""

    segments: torch.Tensor | None = None
    """int [B, L]: the document of each token; None for rows of one document."""


_ROWS = _Rows()


@contextmanager
def separate_documents(segments: torch.Tensor | None) -> Iterator[None]:
    """Within the block, masks separate the documents of `segments` [B, L]."""
    _ROWS.segments = segments
    try:
        yield
    finally:
        _ROWS.segments = None


def implementation(kernel: Kernel) -> str:
    """The name in transformers of a kernel with separate documents.

    It does not contain `sdpa` or `flash`, which transformers rejects for models that do not support these.
    """
    return f"scion_{_NAMES[kernel]}"


def _same_document(segments: torch.Tensor) -> Callable[..., torch.Tensor]:
    def attends(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return segments[row, query] == segments[row, key]

    return attends


def with_separate_documents(options: dict[str, Any]) -> dict[str, Any]:
    """Adds to the options of a mask the condition that a token attends only to its own document."""
    if _ROWS.segments is None:
        return options
    mask_function = and_masks(options["mask_function"], _same_document(_ROWS.segments))
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return options | skips | {"mask_function": mask_function}


def _sdpa_mask(**options: Any) -> torch.Tensor | None:
    return sdpa_mask(**with_separate_documents(options))


def _eager_mask(**options: Any) -> torch.Tensor | None:
    return eager_mask(**with_separate_documents(options))


def _flex_mask(**options: Any) -> torch.Tensor | BlockMask | None:
    """A block mask, unless SDPA needs no mask at all, which is even faster."""
    is_windowed = options.get("local_size") is not None and options["kv_length"] >= options["local_size"]
    if _ROWS.segments is None and not is_windowed:
        return sdpa_mask(**options)
    return _block_mask(**options)


def _block_mask(**options: Any) -> BlockMask:
    return flex_attention_mask(**with_separate_documents(options))


def _sdpa(module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """transformers' SDPA; on a CPU with dropout, our own attention.

    Raises:
        NotImplementedError: the model's scores have a soft cap or a sink, which transformers 5.17 silently ignores.
    """
    if (unsupported := next((name for name in _UNSUPPORTED_BY_SDPA if options.get(name) is not None), None)) is not None:
        raise NotImplementedError(f"SDPA does not support {unsupported}")
    has_position_bias = options.get("position_bias") is not None
    if options.get("dropout") and not has_position_bias and query.device.type == "cpu" and not torch.compiler.is_compiling():
        if mask is None and _looks_back(module, options):
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        return cpu_dropout.attention(query, key, value, mask, scaling, options["dropout"]).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, mask, **options)


def _looks_back(module: torch.nn.Module, options: dict[str, Any]) -> bool:
    """Whether attention without a mask is causal: as the model's config says, else as the module does."""
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", False) if given is None else given)


def _flex(module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    forward = flex_attention_forward if isinstance(mask, BlockMask) else _sdpa
    return forward(module, query, key, value, mask, **options)


def eager_attention(module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """The eager attention of the model's own module."""
    forward = sys.modules[type(module).__module__].eager_attention_forward
    return forward(module, query, key, value, mask, **options)


_KERNELS: dict[Kernel, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "flex": (_flex, _flex_mask),
    "blocks": (_flex, _block_mask),
    "sdpa": (_sdpa, _sdpa_mask),
    "eager": (eager_attention, _eager_mask),
}
for _kernel, (_attention, _mask) in _KERNELS.items():
    AttentionInterface.register(implementation(_kernel), _attention)
    AttentionMaskInterface.register(implementation(_kernel), _mask)
