"""Continued pretraining: masked tokens for an encoder; the next token, or the masked next one, for a decoder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError
from data_pipeline.feed.masking import Masker
from data_pipeline.feed.target_batch import NextToken
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.tokenizers.folder import is_tokenizer_file
from trainer.embedder import MAX_SHARD_SIZE, model_output
from trainer.models import loading
from trainer.models.adapters import Lora
from trainer.models.bidirectional import check_config, is_bidirectional, make_bidirectional
from trainer.models.load_trained import load_trained
from trainer.models.packed_lm import PackedLM
from trainer.objectives.language_modeling import LanguageModeling
from trainer.objectives.objective import Objective


def check_objective(config: PretrainedConfig, kind: str, mntp: bool, model: str) -> None:
    """Checks that a model of this kind, "masked" or "causal", can be trained by the objective.

    Raises:
        ModelError: it cannot.
    """
    if mntp and kind != "causal":
        raise ModelError(
            f"{config.model_type} predicts masked tokens at their own place: mntp is for decoders.",
            f"model {model}",
            "Leave pretrain.objective out.",
        )
    if mntp:
        check_config(config, model)
    elif kind == "causal" and is_bidirectional(config):
        raise ModelError(
            "its tokens read those behind them, so it cannot learn to predict the next one.",
            f"model {model}",
            "Set pretrain.objective=mntp.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelTask:
    """Continued pretraining of an encoder or a decoder."""

    chunk_tokens: ClassVar[int | None] = None
    passes: ClassVar[str] = "direct"
    model_uri: str
    length: int
    probability: float
    """Share of masked tokens; a causal decoder ignores it."""
    seed: int
    mntp: bool = False
    """Whether a decoder becomes bidirectional and predicts masked next tokens (LLM2Vec, BehnamGhader et al. 2024)."""
    objective: Objective = field(default_factory=LanguageModeling)

    def module(self, each: loading.WeightCallback | None = None, dtype: loading.Dtype = torch.float32) -> PackedLM:
        with storage.local_copy(self.model_uri) as folder:
            is_causal = self._is_causal(folder)
            model = loading.language_model(folder, self.seed, dtype, each)
        if self.mntp:
            make_bidirectional(model)
        return PackedLM(model, is_causal, 1.0 if is_causal else self.probability, self.objective)

    def collator(self) -> Masker | NextToken:
        """The function from rows to a batch of inputs and targets: masking for an encoder, next tokens for a decoder.

        Raises:
            ModelError: it is an encoder-decoder.
        """
        with storage.local_copy(self.model_uri, is_tokenizer_file) as folder:
            is_causal, tokenizer = self._is_causal(folder), load_tokenizer(folder)
        if is_causal:
            return NextToken(length=self.length)
        return Masker(
            length=self.length,
            mask_id=self._mask_id(tokenizer),
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
            vocab_size=len(tokenizer),
            probability=self.probability,
            seed=self.seed,
            predicts_next=self.mntp,
        )

    def check(self) -> None:
        """Checks that the model can be trained by this task.

        Raises:
            ModelError: it is an encoder-decoder, it is not of the kind that the objective trains, or its tokenizer has no token
                to mask with.
        """
        with storage.local_copy(self.model_uri, is_tokenizer_file) as folder:
            kind, tokenizer = self._kind(folder), load_tokenizer(folder)
            check_objective(loading.model_config(folder), kind, self.mntp, self.model_uri)
        if kind == "masked" or self.mntp:
            self._mask_id(tokenizer)

    def _is_causal(self, folder: str) -> bool:
        return self._kind(folder) == "causal" and not self.mntp

    def _mask_id(self, tokenizer: PreTrainedTokenizerFast) -> int:
        """The token that stands for masked ones: of a decoder without a mask token `_`, as in LLM2Vec.

        Raises:
            ModelError: there is none.
        """
        blank = tokenizer.get_vocab().get("_") if self.mntp else None
        mask = blank if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        if mask is None:
            raise ModelError("its tokenizer has no mask token.", f"model {self.model_uri}", "Add one, or take a decoder.")
        return int(mask)

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
