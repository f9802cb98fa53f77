"""What is trained: how rows become batches, batches a loss, and weights a folder."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError
from data_pipeline.feed.masking import Masker
from data_pipeline.feed.targets import NextToken
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.tokenizers.folder import is_tokenizer_file
from trainer.embedder import SHARD, Embedder, EmbedderSpec, model_output, with_padding
from trainer.models import loading
from trainer.models.adapters import Lora, add_adapters, merge_adapters
from trainer.models.dual_encoder import DualEncoder
from trainer.models.flops import Flops
from trainer.models.forward_check import Checked
from trainer.models.freezing import frozen_names, names_without_adapters
from trainer.models.packed_lm import PackedLM


class Batch(Protocol):
    """Rows as tensors."""

    @property
    def streams(self) -> torch.Tensor:
        """int [M]: the stream that each loss is of"""
        ...

    @property
    def tokens(self) -> int:
        """Without padding, and without rows of weight 0."""
        ...

    @property
    def pairs(self) -> int:
        """Pairs of those tokens that see each other."""
        ...

    @property
    def size(self) -> int:
        """Tokens with padding."""
        ...

    def counts(self, streams: int) -> torch.Tensor:
        """Targets of each stream, float64 [streams]; the loss of a step is divided by their sum over all ranks."""
        ...

    def to(self, device: torch.device | str) -> "Batch": ...

    def pinned(self) -> "Batch":
        """In memory from which a GPU copies by itself."""
        ...


class Module(Protocol):
    """What is trained. Its forward is the loss of each of a batch's M targets."""

    def flops(self) -> Flops: ...

    def check(self, length: int) -> Checked:
        """Whether a document in a batch is what it is alone, on this device, in this precision; takes the leanest way for which
        that holds.

        Raises:
            ModelError: there is none.
        """
        ...

    def settle(self, found: Checked) -> None:
        """Takes the way that the check of another rank found."""
        ...

    def slow(self) -> list[str]:
        """What keeps this model from the fast path, in words."""
        ...

    def compile_graph(self) -> None:
        """From now on one graph of fixed shapes, if it can be one."""
        ...

    def layers(self) -> list[torch.nn.Module]:
        """Those of which each can be a graph of fixed shapes."""
        ...


class Task(Protocol):
    """An objective on a model."""

    @property
    def length(self) -> int:
        """Tokens in the longest row."""
        ...

    @property
    def divisible(self) -> bool:
        """Whether a step is the same however its rows are divided into micro-batches."""
        ...

    def module(self, each: loading.Each | None = None) -> "Module":
        """What is to be trained, whole or with weights that `each` has changed as they were read.

        Raises:
            ModelError: the folder holds no model that can be trained so.
        """
        ...

    def collator(self) -> Callable[[pa.Table], Batch]:
        """Made once a worker: rows of the feed to a batch."""
        ...

    def export(
        self, weights: Mapping[str, torch.Tensor], uri: str, frozen: Collection[str] = (), lora: Lora | None = None
    ) -> None:
        """Writes the trained model, from the module's state dict, as a folder that users can load. What `frozen` names
        (`TrainConfig.frozen`) is not in `weights` and stays the source's; adapters of `lora` are added to its weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelTask:
    """Continued pretraining: masked tokens for an encoder, the next token for a decoder."""

    divisible: ClassVar[bool] = True
    model_uri: str
    length: int
    probability: float
    """Share of masked tokens; of no meaning for a decoder."""
    seed: int

    def module(self, each: loading.Each | None = None, dtype: loading.Format = torch.float32) -> PackedLM:
        with storage.local_copy(self.model_uri) as folder:
            kind = self._kind(folder)
            share = 1.0 if kind == "causal" else self.probability
            return PackedLM(loading.language_model(folder, self.seed, dtype, each), kind == "causal", share)

    def collator(self) -> Masker | NextToken:
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
        """Whether the model can be trained so.

        Raises:
            ModelError: it is an encoder-decoder, or an encoder whose tokenizer has no mask token.
        """
        with storage.local_copy(self.model_uri, is_tokenizer_file) as folder:
            kind, tokenizer = self._kind(folder), load_tokenizer(folder)
        if kind == "masked" and tokenizer.mask_token_id is None:
            raise ModelError("its tokenizer has no mask token.", f"model {self.model_uri}", "Add one, or take a decoder.")

    def _kind(self, folder: str) -> str:
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
        module = self.module(dtype=torch.float32 if frozen or lora else "auto")
        fill(module, weights, frozen, lora)
        with model_output(uri) as folder:
            module.model.save_pretrained(folder, max_shard_size=SHARD)
            load_tokenizer(self.model_uri).save_pretrained(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveTask:
    """Embedder training on pairs."""

    divisible: ClassVar[bool] = False
    """The negatives are those of a micro-batch."""
    model_uri: str
    spec: EmbedderSpec
    temperature: float
    symmetric: bool

    @property
    def length(self) -> int:
        return self.spec.max_length

    def module(self, each: loading.Each | None = None, dtype: loading.Format = torch.float32) -> DualEncoder:
        with storage.local_copy(self.model_uri) as folder:
            model = loading.encoder(folder, dtype, each)
        return DualEncoder(model, self.spec.pooling, self.temperature, self.symmetric)

    def collator(self) -> Callable[[pa.Table], Batch]:
        return partial(PairBatch, pad=int(with_padding(load_tokenizer(self.model_uri)).pad_token_id))

    def export(
        self, weights: Mapping[str, torch.Tensor], uri: str, frozen: Collection[str] = (), lora: Lora | None = None
    ) -> None:
        module = self.module(dtype=torch.float32 if frozen or lora else "auto")
        fill(module, weights, frozen, lora)
        Embedder(module.model, load_tokenizer(self.model_uri), self.spec).save(uri)


def dtype_of(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The format in which the trained weights are to be saved."""
    return next(value.dtype for value in weights.values() if value.is_floating_point())


def fill(module: Any, weights: Mapping[str, torch.Tensor], frozen: Collection[str], lora: Lora | None) -> None:
    """Makes a module that was just loaded the trained one, in the format of `weights`."""
    if lora is None:
        load_weights(module.model, weights, frozen_names(module, frozen))
    else:
        add_adapters(module.model, lora)
        load_weights(module.model, weights, names_without_adapters(module))
        module.float()
        merge_adapters(module.model)
    module.to(dtype_of(weights))


def load_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], frozen: Collection[str] = ()) -> None:
    """Puts the weights of a module's `model.` part, all but the `frozen`, in the place of the model's own, without a copy; tied
    weights may be named once or twice."""
    there = model.state_dict(keep_vars=True)
    given = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    unexpected = [name for name, value in given.items() if name not in there or value.shape != there[name].shape]
    known = {id(there[name]) for name in given if name in there}
    lost = [name for name, one in there.items() if id(one) not in known and f"model.{name}" not in frozen]
    assert not lost + unexpected, f"weights do not fit: missing {lost[:3]}, unexpected {unexpected[:3]}"
    for name, value in given.items():
        there[name].data = value
