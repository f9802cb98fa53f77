"""Text to vectors: the one path that evaluation measures and that the server answers with.

An embedder is a sentence-transformers folder with `embed.json` beside it. Any model folder can be read as one: without
those files it pools by the mean and normalises.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train as tokenizers
from trainer.models import loading
from trainer.models.pooling import POOLINGS

MAX_SHARD_SIZE = "5GB"
"""The most that a file of a model's folder holds."""
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Files into which `save_pretrained` writes weights, whole or in shards."""
_BATCH_TOKENS = 4096
"""Padded tokens of one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """How vectors are made from token vectors; the content of `embed.json`."""

    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 128
    """Tokens, special ones included; longer texts are cut."""
    dimensions: tuple[int, ...] = ()
    """Widths that may be asked for, the full one among them; empty means the full one only."""


class Embedder:
    """A model, its tokenizer and a spec. `encode` gives the same vector for a text in any batch, to 1e-5."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, spec: EmbedderSpec) -> None:
        self.model = model.eval()
        self.tokenizer = with_padding(tokenizer)
        self.spec = spec
        self._pool = POOLINGS[spec.pooling]
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id

    @classmethod
    def load(cls, uri: str) -> "Embedder":
        """Reads an embedder, or any model folder or hub name.

        Raises:
            ModelError: no model or no tokenizer there, or a pooling that is not known.
        """
        with model_folder(uri) as folder:
            model = loading.encoder(folder)
            spec = _spec(folder, model)
            if spec.pooling not in POOLINGS:
                raise ModelError(f"pooling {spec.pooling!r} is not known.", folder, f"Known: {', '.join(POOLINGS)}.")
            return cls(model, tokenizers.load(folder), spec)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The widths that may be asked for, the full width first."""
        return tuple(sorted({self.width, *self.spec.dimensions}, reverse=True))

    @cached_property
    def width(self) -> int:
        """Numbers of a token's vector as the model puts it out: OPT-350m's are fewer than its `hidden_size`."""
        with torch.inference_mode():
            ids = torch.tensor([[self.tokenizer.pad_token_id]], device=self.model.device)
            return int(self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape[-1])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with special tokens, cut at `max_length` so that the closing special token stays."""
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
        return [self._cut(text.ids) for text in encoded]

    def encode(self, texts: Sequence[str], dimensions: int | None = None) -> NDArray[np.float32]:
        """Vectors [n, d] of n texts."""
        return self.encode_ids(self.tokenize(texts), dimensions)

    def encode_ids(self, ids: Sequence[Sequence[int]], dimensions: int | None = None) -> NDArray[np.float32]:
        """Vectors [n, d] of n rows of token ids, special tokens included.

        Cut to the first `dimensions` values and normalised after the cut.

        Raises:
            ConfigError: `dimensions` is not one that this embedder has.
        """
        if dimensions is not None and dimensions not in self.dimensions:
            raise ConfigError(
                f"this embedder has no {dimensions} dimensions.", "dimensions", f"Ask for one of {self.dimensions}."
            )
        vectors = torch.empty(len(ids), dimensions or self.dimensions[0])
        with torch.inference_mode():
            for rows in batches_by_length(ids):
                vectors[rows] = self._forward([ids[row] for row in rows], vectors.shape[1])
        return vectors.numpy()

    def save(self, uri: str) -> None:
        """Writes a sentence-transformers folder (its layout of all versions since 2) with `embed.json`."""
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * self.spec.normalize
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ]
        pooling = {"word_embedding_dimension": self.width} | {
            f"pooling_mode_{mode}": mode.startswith(self.spec.pooling)
            for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
        }
        with model_output(uri) as folder:
            self.model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
            self.tokenizer.model_max_length = self.spec.max_length
            self.tokenizer.save_pretrained(folder)
            for path, _ in modules[1:]:
                os.makedirs(os.path.join(folder, path), exist_ok=True)
            _write(folder, "modules.json", listed)
            _write(folder, "sentence_bert_config.json", {"max_seq_length": self.spec.max_length, "do_lower_case": False})
            _write(folder, "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})
            _write(folder, "1_Pooling/config.json", pooling)
            _write(folder, "embed.json", asdict(self.spec))

    def _cut(self, ids: list[int]) -> list[int]:
        length = self.spec.max_length
        if len(ids) <= length:
            return ids
        ends_special = ids[-1] in self.tokenizer.all_special_ids
        return ids[: length - 1] + ids[-1:] if ends_special else ids[:length]

    def _forward(self, rows: list[Sequence[int]], width: int) -> torch.Tensor:
        pad = self.tokenizer.pad_token_id
        rows = [row or [pad] for row in rows]  # an empty text has no token where the tokenizer inserts none
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.model.device)
        tokens = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        vectors = self._pool(tokens, mask)[:, :width]
        return (torch.nn.functional.normalize(vectors, dim=1) if self.spec.normalize else vectors).cpu()


@contextmanager
def model_output(uri: str) -> Iterator[str]:
    """A local folder for a model, whose files are at `uri` when the block ends without an error.

    Weights of an earlier save are removed first: a run that resumes may write other shards, or one file in place of shards, and
    loaders prefer `model.safetensors` to an index.
    """
    for name in filter(_WEIGHTS.fullmatch, storage.files(uri)):
        storage.remove(storage.join(uri, name))
    with storage.local_output(uri) as folder:
        yield folder


def with_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, padding on the right, with its end token where it has none to pad with, as shards do.

    Raises:
        ModelError: it has neither.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no token to pad with.", tokenizer.name_or_path, "Give it a pad_token or an eos_token."
        )
    return tokenizer


def batches_by_length(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within the budget; a long row goes alone."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]), reverse=True)
    batch: list[int] = []
    for row in order:
        longest = len(ids[batch[0]]) if batch else 0
        # At most half of a batch is padding: a long row among short ones makes all of them as dear as itself.
        if batch and ((len(batch) + 1) * longest > _BATCH_TOKENS or 2 * len(ids[row]) < longest):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _spec(folder: str, model: PreTrainedModel) -> EmbedderSpec:
    """From `embed.json`, else from sentence-transformers' files, else the default within the model's positions."""
    own = _read(folder, "embed.json")
    if own is not None:
        return EmbedderSpec(**{**own, "dimensions": tuple(own["dimensions"])})
    theirs, pooling = _read(folder, "sentence_bert_config.json") or {}, _read(folder, "1_Pooling/config.json") or {}
    chosen = [mode for mode in POOLINGS if pooling.get({"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
                                                       .get(mode, f"pooling_mode_{mode}"))]  # fmt: skip
    length = theirs.get("max_seq_length") or min(512, loading.max_length(model.config))
    return EmbedderSpec(pooling=pooling.get("pooling_mode") or (chosen or ["mean"])[0], max_length=int(length))


def _read(folder: str, name: str) -> dict[str, Any] | None:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def _write(folder: str, name: str, content: object) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
