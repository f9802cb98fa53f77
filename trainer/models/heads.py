"""Language-model heads whose last step is a plain linear layer, taken apart: what comes before it, and the layer.

For any other architecture nothing is assumed: some scale or cap their logits behind the layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head is `output(transform(hidden))`."""

    name: str
    """Of the model's attribute that holds all of it."""
    transform: Callable[[torch.Tensor], torch.Tensor]
    output: torch.nn.Linear


def _bert(model: Any) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    return "cls", model.cls.predictions.transform


def _roberta(model: Any) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    head = model.lm_head
    return "lm_head", lambda hidden: head.layer_norm(torch.nn.functional.gelu(head.dense(hidden)))


def _linear(model: Any) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    return "lm_head", lambda hidden: hidden


FAMILIES = {
    "bert": _bert, "roberta": _roberta, "xlm-roberta": _roberta, "camembert": _roberta, "gpt2": _linear, "llama": _linear,
}  # fmt: skip
"""By `model_type`."""


def head_of(model: PreTrainedModel) -> Head | None:
    """The head, taken apart, or None where the architecture is not known or the layer is not a plain one."""
    output = model.get_output_embeddings()
    family = FAMILIES.get(model.config.model_type)
    if family is None or type(output) is not torch.nn.Linear:
        return None
    name, transform = family(model)
    return Head(name=name, transform=transform, output=output)
