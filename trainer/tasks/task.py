"""The contract of tasks: a task connects rows, a model and an objective, and knows how to save the result."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import pyarrow as pa
import torch

from trainer.models import loading
from trainer.models.adapters import Lora
from trainer.models.trainable import Trainable


class Batch(Protocol):
    """Rows as tensors."""

    @property
    def streams(self) -> torch.Tensor:
        """int [M]: the stream that each loss is of"""
        ...

    @property
    def tokens(self) -> int:
        """Tokens without padding and without rows of weight 0."""
        ...

    @property
    def attention_pairs(self) -> int:
        """Pairs of those tokens that attend to each other."""
        ...

    @property
    def size(self) -> int:
        """Tokens with padding."""
        ...

    def counts(self, streams: int) -> torch.Tensor:
        """Targets of each stream, float64 [streams]; the loss of a step is divided by their sum over all ranks."""
        ...

    def to(self, device: torch.device | str) -> "Batch": ...

    def pin_memory(self) -> "Batch":
        """In page-locked memory, for asynchronous copies to a GPU."""
        ...


class Task(Protocol):
    """One kind of training."""

    @property
    def length(self) -> int:
        """Tokens in the longest row."""
        ...

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens that are computed at once, where a step is divided by tokens; None where micro-batches of rows divide it."""
        ...

    @property
    def passes(self) -> str:
        """How gradients are made, a row of `PASSES`."""
        ...

    def module(self, each: loading.WeightCallback | None = None) -> Trainable:
        """The module to train, its weights whole or changed by `each` as they are read.

        Raises:
            ModelError: the folder holds no model of this kind.
        """
        ...

    def collator(self) -> Callable[[pa.Table], Batch]:
        """The function from rows of the feed to a batch; made once a worker."""
        ...

    def export(
        self, weights: Mapping[str, torch.Tensor], uri: str, frozen: Collection[str] = (), lora: Lora | None = None
    ) -> None:
        """Writes the trained model as a folder that users can load.

        Args:
            weights: the module's state dict, without what `frozen` names (`TrainConfig.frozen`), which stays the source's.
            lora: adapters to merge into the weights.
        """
        ...
