"""The model that a server holds: loaded, warm, and behind a batcher."""

import asyncio
import gc
import os
from functools import partial
from pathlib import Path

import torch

from cluster.serve.batching import Batcher, ModelStuck, PassReport, Vectors, measure_budget
from cluster.serve.config import ServeConfig
from cluster.serve.metrics import Recorder
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, RequestError, TokenIds, input_types
from cluster.serve.request_record import current
from data_pipeline.errors import ConfigError
from data_pipeline.pairs.text_form import TEXT
from data_pipeline.tokenizers.template import template_ids
from trainer.embedder import Embedder


class ServedModel:
    """An embedder that encodes the texts of many requests together."""

    def __init__(self, config: ServeConfig, threads: int, recorder: Recorder) -> None:
        """
        Args:
            threads: of a forward pass on the CPU.
            recorder: of the metrics of forward passes.

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
        self._batcher = Batcher(embedder.pooled, budget, partial(_record, recorder))
        self.card = _card(config.name, embedder)
        for name in (None, *input_types(self.card)):
            embedder.tokenize([], name)  # refuses a prompt that leaves no room for a text
        # What is here by now stays. To look through it again costs every request of that moment 0.2 s.
        gc.collect()
        gc.freeze()

    def tokenize(self, asked: EmbeddingRequest) -> TokenIds:
        """Token ids of the texts of a request, with the prompt that it asks for."""
        return self._embedder.tokenize(asked.texts, asked.input_type, is_cut=asked.is_cut)

    async def encode(self, rows: TokenIds, output: Output) -> Vectors:
        """Vectors [n, d] of n lists of token ids, as `Embedder.encode` makes them; raises the model's error.

        A caller that is cancelled frees the model of the rows that it has not begun.

        Raises:
            RequestError: 503, a forward pass does not end.
        """
        try:
            pooled = await asyncio.wrap_future(self._batcher.submit(rows, output.layers, current()))
        except ModelStuck as error:
            fix = "Send the request to another server; this one has to be started again."
            raise RequestError("the model does not answer.", "", fix, 503, "model_stuck") from error
        vectors = self._embedder.finish(pooled, output.dimensions, output.is_normalized)
        return self._embedder.for_index(output.index, vectors, output.layers)

    @property
    def is_stuck(self) -> bool:
        """Whether a forward pass does not end."""
        return self._batcher.is_stuck

    def close(self, drops_waiting: bool = False) -> None:
        """Ends the batcher once it has encoded what waits, or has dropped it."""
        self._batcher.close(drops_waiting)


def _record(recorder: Recorder, report: PassReport) -> None:
    recorder.record("scion_pass_seconds", report.seconds)
    recorder.record("scion_pass_texts", report.texts)
    recorder.record("scion_tokens_total", report.tokens)
    recorder.record("scion_padding_tokens_total", report.padding)
    recorder.record("scion_waiting_texts", report.waiting)


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
