"""Training of an embedder on text pairs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pyarrow as pa
import torch

from data_pipeline.artifacts import storage
from data_pipeline.pairs import CHUNK_TOKENS
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.text_form import TextForm
from data_pipeline.shards.build import load_tokenizer
from trainer.embedder import Embedder, with_padding
from trainer.embedder_spec import EmbedderSpec
from trainer.models import latent_attention, loading
from trainer.models.adapters import Lora
from trainer.models.bidirectional import make_bidirectional
from trainer.models.dual_encoder import DualEncoder
from trainer.models.load_trained import load_trained
from trainer.models.pooling import LATENT_ATTENTION
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.objective import Objective
from trainer.tasks.task import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveTask:
    """Embedder training on pairs."""

    model_uri: str
    spec: EmbedderSpec
    objective: Objective = field(default_factory=InfoNce)
    chunk_tokens: int = CHUNK_TOKENS["cpu"]
    """Tokens that a worker encodes at once, with padding; a larger batch is encoded twice (`passes/cached.py`)."""
    bidirectional: bool = False
    """Whether the causal mask of a decoder is dropped; an encoder has none."""
    latents: int | None = 512
    """Rows of the dictionary of latent attention, where that pools; None for those of the model's own."""
    passes: Literal["cached", "cached_per_chunk"] = "cached"

    @property
    def length(self) -> int:
        return self.spec.max_length

    @property
    def forms(self) -> tuple[TextForm, TextForm]:
        """How anchors are written, and how positives and negatives are."""
        return self.spec.form("query"), self.spec.form("document")

    def check(self, prompts: Collection[str] = ()) -> None:
        """Checks that prompts and template leave room for a text.

        Args:
            prompts: those of the rows, which stand in front of their anchors.

        Raises:
            ConfigError: they do not.
        """
        tokenizer, (of_queries, of_documents) = load_tokenizer(self.model_uri), self.forms
        of_queries.check(tokenizer, self.spec.max_length, sorted({"", *prompts}))
        of_documents.check(tokenizer, self.spec.max_length)

    def module(self, each: loading.WeightCallback | None = None, dtype: loading.Dtype = torch.float32) -> DualEncoder:
        """The model with its pooling and objective; `each` as in `loading.encoder`."""
        with storage.local_copy(self.model_uri) as folder:
            model = loading.encoder(folder, dtype, each)
            if self.spec.pooling == LATENT_ATTENTION:
                latent_attention.attach(model, folder, self.latents)
        if self.bidirectional and loading.is_causal(model.config):
            make_bidirectional(model)
        return DualEncoder(model, self.spec.pooling, self.objective)

    def collator(self) -> Callable[[pa.Table], Batch]:
        pad = int(with_padding(load_tokenizer(self.model_uri)).pad_token_id)
        return partial(PairBatch, pad=pad, chunk_tokens=self.chunk_tokens)

    def export(
        self, weights: Mapping[str, torch.Tensor], uri: str, frozen: Collection[str] = (), lora: Lora | None = None
    ) -> None:
        module = self.module(dtype=torch.float32 if frozen or lora else "auto")
        load_trained(module, weights, frozen, lora)
        Embedder(module.model, load_tokenizer(self.model_uri), self.spec).save(uri)
