"""The model that a server holds: loaded, warm, and behind a batcher."""

import asyncio
import gc
import os

import torch

from cluster.serve.batching import Batcher, Vectors, measure_budget
from cluster.serve.config import ServeConfig
from cluster.serve.protocol import ModelCard, TokenIds
from trainer.embedder import Embedder


class ServedModel:
    """An embedder that encodes the texts of many requests together."""

    def __init__(self, config: ServeConfig, threads: int) -> None:
        """
        Args:
            threads: of a forward pass on the CPU.

        Raises:
            ModelError: the model cannot be loaded.
        """
        torch.set_num_threads(threads)
        self._embedder = embedder = Embedder.load_for_inference(config.model, "cuda" if config.gpu else "cpu")
        # Its measurements also start threads and kernels, for which no request has to wait then.
        budget = measure_budget(embedder.pooled, embedder.spec.max_length, config.max_batch_tokens)
        self._batcher = Batcher(embedder.pooled, budget)
        self.card = ModelCard(
            name=config.name,
            dimensions=embedder.dimensions,
            max_length=embedder.spec.max_length,
            vocabulary=min(len(embedder.tokenizer), int(embedder.model.config.vocab_size)),
            prompts=tuple(embedder.spec.prompts),
        )
        self.tokenize = embedder.tokenize
        # What is here by now stays. To look through it again costs every request of that moment 0.2 s.
        gc.collect()
        gc.freeze()

    async def encode(self, rows: TokenIds, dimensions: int | None) -> Vectors:
        """Vectors [n, dimensions] of n lists of token ids, as `Embedder.encode_ids`; raises the model's error.

        A caller that is cancelled frees the model of the rows that it has not begun.
        """
        pooled = await asyncio.wrap_future(self._batcher.submit(rows))
        return self._embedder.finish(pooled, dimensions)

    def close(self) -> None:
        """Ends the batcher once it has encoded what waits."""
        self._batcher.close()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
