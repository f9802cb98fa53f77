"""The model that a server holds: loaded, warm, and behind a batcher."""

import asyncio
import gc
import os
import sys
from pathlib import Path

import torch

from cluster.serve.answers import TextPieces
from cluster.serve.batching import Batcher, Vectors, measure_budget
from cluster.serve.config import ServeConfig
from cluster.serve.piece_reader import PieceReader
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, TokenIds, input_types
from data_pipeline.errors import ConfigError
from data_pipeline.pairs.text_form import TEXT
from data_pipeline.tokenizers.template import template_ids
from trainer.embedder import Embedder


class ServedModel:
    """An embedder that encodes the texts of many requests together."""

    def __init__(self, config: ServeConfig, threads: int) -> None:
        """
        Args:
            threads: of a forward pass on the CPU.

        Raises:
            ModelError: the model cannot be loaded.
            ConfigError: there is no GPU, or a prompt leaves no room for a text.
        """
        if config.gpu and not torch.cuda.is_available():
            raise ConfigError("there is no GPU.", "serve.gpu", "Set it to false, or serve where torch finds one.")
        torch.set_num_threads(threads)
        self._embedder = embedder = Embedder.load_for_inference(config.model, "cuda" if config.gpu else "cpu")
        # Its measurements also start threads and kernels, for which no request has to wait then.
        budget = measure_budget(embedder.pooled, embedder.spec.max_length, config.max_batch_tokens)
        self._batcher = Batcher(embedder.pooled, budget)
        self._pieces = PieceReader(embedder.tokenizer, config.source_tokenizer)
        self.card = _card(config.name, embedder)
        for name in (None, *input_types(self.card)):
            embedder.tokenize([], name)  # refuses a prompt that leaves no room for a text
        # What is here by now stays. To look through it again costs every request of that moment 0.2 s.
        gc.collect()
        gc.freeze()

    def tokenize(self, asked: EmbeddingRequest) -> TokenIds:
        """Token ids of the texts of a request, with the prompt that it asks for."""
        return self._embedder.tokenize(asked.texts, asked.input_type, is_cut=asked.is_cut)

    def pieces(self, asked: EmbeddingRequest) -> list[TextPieces]:
        """What each token of the texts of a request stands for; of the source's tokenizer without prompt, and uncut."""
        form = self._embedder.spec.form(asked.input_type)
        length = self._embedder.spec.max_length if asked.is_cut else sys.maxsize
        return [self._pieces.read(text, form, length) for text in asked.texts]

    async def encode(self, rows: TokenIds, output: Output) -> Vectors:
        """Vectors [n, d] of n lists of token ids, as `Embedder.encode` makes them; raises the model's error.

        A caller that is cancelled frees the model of the rows that it has not begun.
        """
        pooled = await asyncio.wrap_future(self._batcher.submit(rows, output.layers))
        vectors = self._embedder.finish(pooled, output.dimensions, output.is_normalized)
        return self._embedder.for_index(output.index, vectors, output.layers)

    def close(self, drops_waiting: bool = False) -> None:
        """Ends the batcher once it has encoded what waits, or has dropped it."""
        self._batcher.close(drops_waiting)


def _card(name: str, embedder: Embedder) -> ModelCard:
    """What requests may ask of the embedder."""
    spec = embedder.spec
    prefix, suffix = template_ids(embedder.tokenizer)
    return ModelCard(
        name=name,
        dimensions=embedder.dimensions,
        max_length=spec.max_length,
        vocabulary=min(len(embedder.tokenizer), int(embedder.model.config.vocab_size)),
        prompts=tuple(spec.prompts),
        layers=spec.layers,
        indexes=tuple(embedder.compensations),
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
