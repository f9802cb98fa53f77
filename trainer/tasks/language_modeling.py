"""Continued pretraining: masked tokens for an encoder, the next token for a decoder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError
from data_pipeline.feed.masking import Masker
from data_pipeline.feed.target_batch import NextToken
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.tokenizers.folder import is_tokenizer_file
from trainer.embedder import MAX_SHARD_SIZE, model_output
from trainer.models import loading
from trainer.models.adapters import Lora
from trainer.models.load_trained import load_trained
from trainer.models.packed_lm import PackedLM
from trainer.objectives.language_modeling import LanguageModeling
from trainer.objectives.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelTask:
    """Continued pretraining: masked tokens for an encoder, the next token for a decoder."""

    chunk_tokens: ClassVar[int | None] = None
    passes: ClassVar[str] = "direct"
    model_uri: str
    length: int
    probability: float
    """Share of masked tokens; a decoder ignores it."""
    seed: int
    objective: Objective = field(default_factory=LanguageModeling)

    def module(self, each: loading.WeightCallback | None = None, dtype: loading.Dtype = torch.float32) -> PackedLM:
        with storage.local_copy(self.model_uri) as folder:
            kind = self._kind(folder)
            share = 1.0 if kind == "causal" else self.probability
            model = loading.language_model(folder, self.seed, dtype, each)
            return PackedLM(model, kind == "causal", share, self.objective)

    def collator(self) -> Masker | NextToken:
        """The function from rows to a batch of inputs and targets: masking for an encoder, next tokens for a decoder.

        Raises:
            ModelError: it is an encoder-decoder.
        """
        with storage.local_copy(self.model_uri, is_tokenizer_file) as folder:
            kind, tokenizer = self._kind(folder), load_tokenizer(folder)
        if kind == "causal":
            return NextToken(length=self.length)
        return Masker(
            length=self.length,
            mask_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
            vocab_size=len(tokenizer),
            probability=self.probability,
            seed=self.seed,
        )

    def check(self) -> None:
        """Checks that the model can be trained by this task.

        Raises:
            ModelError: it is an encoder-decoder, or an encoder whose tokenizer has no mask token.
        """
        with storage.local_copy(self.model_uri, is_tokenizer_file) as folder:
            kind, tokenizer = self._kind(folder), load_tokenizer(folder)
        if kind == "masked" and tokenizer.mask_token_id is None:
            raise ModelError("its tokenizer has no mask token.", f"model {self.model_uri}", "Add one, or take a decoder.")

    def _kind(self, folder: str) -> str:
        """The kind of the model in the folder, "masked" or "causal"; ModelError for an encoder-decoder."""
        kind = loading.kind_of(folder)
        if kind not in ("masked", "causal"):
            raise ModelError(
                f"{kind} language models can be transferred, but not pretrained here.",
                f"model {self.model_uri}",
                "Take the folder that `scion transfer` wrote to a trainer for encoder-decoders.",
            )
        return kind

    def export(
        self, weights: Mapping[str, torch.Tensor], uri: str, frozen: Collection[str] = (), lora: Lora | None = None
    ) -> None:
        """Writes the model with the trained weights, and its tokenizer, to folder `uri` in the transformers format."""
        module = self.module(dtype=torch.float32 if frozen or lora else "auto")
        load_trained(module, weights, frozen, lora)
        with model_output(uri) as folder:
            module.model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
            load_tokenizer(self.model_uri).save_pretrained(folder)
