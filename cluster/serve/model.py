"""A model that a server holds: loaded, warm, and behind the batcher."""

import asyncio
import hashlib
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cluster.serve.answers import TextPieces
from cluster.serve.batching import Batcher, Budget, Encoder, ModelStuck, Vectors, measure_budget
from cluster.serve.config import ServeConfig
from cluster.serve.piece_reader import PieceReader
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, RequestError, TokenIds, input_types
from cluster.serve.request_record import current
from data_pipeline.artifacts.artifact import FINISHED
from data_pipeline.errors import ConfigError, ModelError, reason
from data_pipeline.pairs.text_form import TEXT
from data_pipeline.tokenizers.template import template_ids
from trainer.embedder import Embedder
from trainer.embedder_spec import says_pooling
from trainer.models.exits import between_layers
from trainer.models.onednn_linear import use_onednn

_log = logging.getLogger("scion.serve")
_PROBES = 64
"""Rows by which bf16 is compared with fp32."""
_LARGE = 128 << 10
"""Bytes of pooled vectors whose last steps would keep other requests waiting longer than a thread takes to start."""
_FILES = (".safetensors", ".bin", ".json", ".model", ".txt")
"""Files that decide what the vectors are."""
_RUN_FOLDERS = {"log", "ledger"}
"""What a training leaves beside its model."""


class ServedModel:
    """An embedder that encodes the texts of many requests together."""

    def __init__(
        self, name: str, folder: str, config: ServeConfig, batcher: Batcher, replaced: "ServedModel | None" = None
    ) -> None:
        """
        Args:
            name: of the model in requests.
            folder: its local folder.
            batcher: gets the passes of all models of this process.
            replaced: an earlier version. One of the same size takes as long, and this one is not timed again: in the midst of
                requests its times would be wrong.

        Raises:
            ModelError: the model cannot be loaded, or its files change meanwhile.
            ConfigError: there is no GPU, or a prompt leaves no room for a text.
        """
        if config.gpu and not torch.cuda.is_available():
            raise ConfigError("there is no GPU.", "serve.gpu", "Set it to false, or serve where torch finds one.")
        version = version_of(folder)
        if not says_pooling(folder):
            _log.warning("%s does not say how it pools: its vectors are normalized means, which may be of little use", folder)
        self._embedder = embedder = Embedder.load_for_inference(folder, "cuda" if config.gpu else "cpu")
        cosine = None if config.precision == "fp32" else to_bf16(embedder, folder)
        _leave_file(embedder.model)
        if version_of(folder) != version:
            raise ModelError("its files changed while they were read.", folder, "Start again once they are whole.")
        # Its measurements also start threads and kernels, for which no request has to wait then.
        self.size = _size(folder)
        self.budget: Budget = (
            replaced.budget
            if replaced is not None and replaced.size == self.size
            else measure_budget(embedder.pooled, embedder.spec.max_length, config.max_batch_tokens)
        )
        self._encoder, self._batcher = Encoder(embedder.pooled, self.budget), batcher
        if not config.gpu:  # a GPU is given all layers at once
            between_layers(embedder.model, batcher.encode_small)
        self._pieces = PieceReader(embedder.tokenizer, config.source_tokenizer if name == config.name else "")
        self.card = replace(_card(name, version, embedder), precision=config.precision, lowest_cosine=cosine)
        for prompt in (None, *input_types(self.card)):
            embedder.tokenize([], prompt)  # refuses a prompt that leaves no room for a text

    def tokenize(self, asked: EmbeddingRequest) -> TokenIds:
        """Token ids of the texts of a request, with the prompt that it asks for."""
        return self._embedder.tokenize(asked.texts, asked.input_type, truncate=asked.truncate)

    def pieces(self, asked: EmbeddingRequest) -> list[TextPieces]:
        """What each token of the texts of a request stands for; of the source's tokenizer without prompt, and uncut."""
        form = self._embedder.spec.form(asked.input_type)
        length = sys.maxsize if asked.truncate == "none" else self._embedder.spec.max_length
        return [self._pieces.read(text, form, length) for text in asked.texts]

    async def encode(self, rows: TokenIds, output: Output) -> Vectors:
        """Values [n, d] of n lists of token ids, as `Embedder.encode` makes them; raises the model's error.

        A caller that is cancelled frees the model of the rows that it has not begun.

        Raises:
            RequestError: 503, a forward pass does not end.
        """
        try:
            pooled = await asyncio.wrap_future(self._batcher.submit(self._encoder, rows, output.layers, current()))
        except ModelStuck as error:
            fix = "Send the request to another server; this one has to be started again."
            raise RequestError("the model does not answer.", "", fix, 503, "model_stuck") from error
        if pooled.nbytes <= _LARGE:
            return self._finished(pooled, output)
        return await asyncio.to_thread(self._finished, pooled, output)

    def _finished(self, pooled: Vectors, output: Output) -> Vectors:
        if not np.isfinite(pooled).all():  # JSON would say null, and a byte 0
            raise ArithmeticError("the vector of a text has values that are no numbers")
        vectors = self._embedder.finish(pooled, output.dimensions, output.is_normalized)
        vectors = self._embedder.for_index(output.index, vectors, output.layers)
        return self._embedder.quantized(vectors, output.dtype, output.layers)

    @property
    def is_stuck(self) -> bool:
        """Whether a forward pass does not end."""
        return self._batcher.is_stuck


def _leave_file(model: torch.nn.Module) -> None:
    """Copies weights into memory that are mapped from their file: a file that is written anew would change or crash them."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def to_bf16(embedder: Embedder, folder: str) -> float:
    """Makes an embedder compute in bf16. Returns the lowest cosine of a vector with what it was, on rows of random tokens.

    Raises:
        ConfigError: its family does not compute in bf16, as XLNet in transformers 5.23.
    """
    rng = np.random.default_rng(0)
    known = min(len(embedder.tokenizer), int(embedder.model.config.get_text_config().vocab_size))
    words = np.setdiff1d(np.arange(known), embedder.tokenizer.all_special_ids)
    prefix, suffix = template_ids(embedder.tokenizer)
    room = max(1, embedder.spec.max_length - len(prefix) - len(suffix))
    rows = [[*prefix, *rng.choice(words, 1 + place % room).tolist(), *suffix] for place in range(_PROBES)]
    exact = embedder.encode_ids(rows)
    embedder.model = Embedder.load(folder, torch.bfloat16).model.to(embedder.model.device)
    try:
        use_onednn(embedder.model)
        rounded = embedder.encode_ids(rows)
    except RuntimeError as error:
        what = f"{folder} does not compute in bf16 ({reason(error)})."
        raise ConfigError(what, "serve.precision", "Set it to fp32.") from error
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    return round(float(((exact * rounded).sum(axis=1) / lengths).min()), 5)


def version_of(folder: str) -> str:
    """Identity of an embedder: twelve digits of the SHA-256 of its files. Two folders have the same only if they are equal."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in _FILES and path.name != FINISHED):
        parts = path.relative_to(folder).parts
        if not set(parts) & _RUN_FOLDERS:
            digest.update("/".join(parts).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _size(folder: str) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin"))


def _card(name: str, version: str, embedder: Embedder) -> ModelCard:
    """What requests may ask of the embedder."""
    spec = embedder.spec
    prefix, suffix = template_ids(embedder.tokenizer)
    return ModelCard(
        name=name,
        version=version,
        dimensions=embedder.dimensions,
        max_length=spec.max_length,
        vocabulary=min(len(embedder.tokenizer), int(embedder.model.config.vocab_size)),
        prompts=tuple(spec.prompts),
        pooling=spec.pooling,
        is_normalized=spec.normalize,
        layers=spec.layers,
        indexes=tuple(embedder.compensations),
        calibrated=tuple(embedder.calibrations),
        has_template=embedder.spec.template != TEXT,
        takes_ids=spec.template.count(TEXT) == 1,
        prefix=prefix,
        suffix=suffix if spec.template.endswith(TEXT) else (),
    )


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
