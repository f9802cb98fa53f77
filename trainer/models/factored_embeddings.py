"""Language models whose vocabulary matrices are products: E = F P, V x D numbers as V x r and r x D.

    input     e = F[id] P                      output     logits = (h P^T) F^T + b

F, the coordinates, is called `weight`; P, the primitives, is called `projection`. A model that ties its matrices ties
both factors. `FactoredBertForMaskedLM` is transformers' `BertForMaskedLM` with factors, and so for every other model
that has a plain `torch.nn.Embedding` and a `torch.nn.Linear` head; `config.embedding_rank` is r.

This file lies in every model folder that needs it, for `AutoModel....from_pretrained(folder, trust_remote_code=True)`.
It stands alone: torch and transformers are all that it imports.
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
"""Which class is loaded for a configuration."""


class FactoredEmbedding(nn.Embedding):
    """An embedding of width `width` that holds `rank` numbers a token."""

    def __init__(self, rows: int, rank: int, width: int, padding_idx: int | None) -> None:
        super().__init__(rows, rank, padding_idx)
        self.projection = nn.Parameter(torch.empty(rank, width))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Ids [...] to vectors [..., D]."""
        return super().forward(input) @ self.projection


class FactoredHead(nn.Linear):
    """A head from `width` to `rows` that holds `rank` numbers a token."""

    def __init__(self, width: int, rank: int, rows: int, bias: bool) -> None:
        super().__init__(rank, rows, bias)
        self.projection = nn.Parameter(torch.empty(rank, width))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] to logits [..., V]."""
        return super().forward(input @ self.projection.T)


class Factored(PreTrainedModel):
    """What a class of transformers needs to become one with factors; made into classes by `factored_class`."""

    plain: ClassVar[type[PreTrainedModel]]
    """The class without factors."""

    def post_init(self) -> None:
        """Puts factors in the place of matrices: transformers calls this when a model's parts are there, without weights."""
        rank: int = self.config.embedding_rank
        inputs: Any = self.get_input_embeddings()
        head: Any = self.get_output_embeddings()
        for name, part in list(self.named_modules()):
            if part is inputs:
                new = FactoredEmbedding(inputs.num_embeddings, rank, inputs.embedding_dim, inputs.padding_idx)
                self.set_submodule(name, new)
            elif part is head:
                self.set_submodule(name, FactoredHead(head.in_features, rank, head.out_features, head.bias is not None))
        super().post_init()

    def initialize_weights(self) -> None:
        """Fresh primitives let products vary as plain rows would; what was read from a file is flagged, and stays."""
        super().initialize_weights()
        for part in (self.get_input_embeddings(), self.get_output_embeddings()):
            if isinstance(part, FactoredEmbedding | FactoredHead):
                initialization.normal_(part.projection, std=self.config.embedding_rank**-0.5)

    def _get_resized_lm_head(self, old_lm_head: Any, *args: Any, **kwargs: Any) -> Any:
        """Resizing is for F, and transformers makes a plain layer of it; P belongs to no token."""
        resized = super()._get_resized_lm_head(old_lm_head, *args, **kwargs)
        old_lm_head.weight, old_lm_head.bias, old_lm_head.out_features = resized.weight, resized.bias, resized.out_features
        return old_lm_head


@cache
def factored_class(base: Any) -> type[Factored]:
    """The class `base` of transformers with factors for matrices."""
    ties = base._tied_weights_keys or {}
    of_projections = {
        target.removesuffix("weight") + "projection": source.removesuffix("weight") + "projection"
        for target, source in ties.items()
        if target.endswith("weight")
    }
    own = {
        "plain": base,
        "config_class": base.config_class,
        "_tied_weights_keys": ties | of_projections,
        # Tells save_pretrained to put this file and the entry in `auto_map` into the folder.
        "_auto_class": next((task for task, known in TASKS.items() if known.get(base.config_class, None) is base), None),
    }
    return type(f"Factored{base.__name__}", (Factored, base), own)


def __getattr__(name: str) -> type[Factored]:
    """`FactoredBertForMaskedLM` and all its like, by the names under which configurations know them."""
    base = getattr(transformers, name.removeprefix("Factored"), None) if name.startswith("Factored") else None
    if base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return factored_class(base)
