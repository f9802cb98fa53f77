"""Language models whose vocabulary matrices are products: E = F P, with shapes V x r and r x D.

    input     e = F[id] P                      output     logits = (h P^T) F^T + b

F, the coordinates, is the parameter `weight`; P, the primitives, is `projection`. A model that ties its matrices ties both
factors. `FactoredBertForMaskedLM` is transformers' `BertForMaskedLM` with factors; the same works for every other model that
has a plain `torch.nn.Embedding` and a `torch.nn.Linear` head. `config.embedding_rank` is r.

This file is copied into every model folder that needs it, for `AutoModel....from_pretrained(folder, trust_remote_code=True)`.
It imports only torch and transformers.
"""

from functools import cache
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, initialization

TASKS: dict[str, Any] = {
    "AutoModel": transformers.MODEL_MAPPING,
    "AutoModelForMaskedLM": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "AutoModelForCausalLM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "AutoModelForSequenceClassification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "AutoModelForTokenClassification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "AutoModelForQuestionAnswering": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
}
"""The model class of a config, by auto class."""


class FactoredEmbedding(nn.Embedding):
    """An embedding of width `width` that stores `rank` numbers a token."""

    def __init__(self, rows: int, rank: int, width: int, padding_idx: int | None) -> None:
        super().__init__(rows, rank, padding_idx)
        self.projection = nn.Parameter(torch.empty(rank, width))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Ids [...] to vectors [..., D]."""
        return super().forward(input) @ self.projection


class FactoredHead(nn.Linear):
    """A head from `width` to `rows` that stores `rank` numbers a token."""

    def __init__(self, width: int, rank: int, rows: int, bias: bool) -> None:
        super().__init__(rank, rows, bias)
        self.projection = nn.Parameter(torch.empty(rank, width))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] to logits [..., V]."""
        return super().forward(input @ self.projection.T)


class Factored(PreTrainedModel):
    """The mixin that gives a transformers class factors; `factored_class` makes the classes."""

    plain: ClassVar[type[PreTrainedModel]]
    """The class without factors."""

    def post_init(self) -> None:
        """Replaces the vocabulary matrices by factors. transformers calls this when the modules exist, without weights."""
        rank: int = self.config.embedding_rank
        inputs: Any = self.get_input_embeddings()
        head: Any = self.get_output_embeddings()
        for name, module in list(self.named_modules()):
            if module is inputs:
                new = FactoredEmbedding(inputs.num_embeddings, rank, inputs.embedding_dim, inputs.padding_idx)
                self.set_submodule(name, new)
            elif module is head:
                self.set_submodule(name, FactoredHead(head.in_features, rank, head.out_features, head.bias is not None))
        super().post_init()

    def initialize_weights(self) -> None:
        """Initialises new primitives so that products have the variance of plain rows. Loaded weights are flagged and stay."""
        super().initialize_weights()
        for module in (self.get_input_embeddings(), self.get_output_embeddings()):
            if isinstance(module, FactoredEmbedding | FactoredHead):
                initialization.normal_(module.projection, std=self.config.embedding_rank**-0.5)

    def _get_resized_lm_head(self, old_lm_head: Any, *args: Any, **kwargs: Any) -> Any:
        """Resizes F only, since P belongs to no token; transformers would make a plain layer of it."""
        resized = super()._get_resized_lm_head(old_lm_head, *args, **kwargs)
        old_lm_head.weight, old_lm_head.bias, old_lm_head.out_features = resized.weight, resized.bias, resized.out_features
        return old_lm_head


@cache
def factored_class(base: Any) -> type[Factored]:
    """The transformers class `base` with factors instead of matrices."""
    ties = base._tied_weights_keys or {}
    tied_projections = {
        target.removesuffix("weight") + "projection": source.removesuffix("weight") + "projection"
        for target, source in ties.items()
        if target.endswith("weight")
    }
    attributes = {
        "plain": base,
        "config_class": base.config_class,
        "_tied_weights_keys": ties | tied_projections,
        # Makes save_pretrained write this file and the entry in `auto_map` to the folder.
        "_auto_class": next((task for task, mapping in TASKS.items() if mapping.get(base.config_class, None) is base), None),
    }
    return type(f"Factored{base.__name__}", (Factored, base), attributes)


def __getattr__(name: str) -> type[Factored]:
    """Resolves `FactoredBertForMaskedLM` and the like, the names in `auto_map`."""
    base = getattr(transformers, name.removeprefix("Factored"), None) if name.startswith("Factored") else None
    if base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return factored_class(base)
