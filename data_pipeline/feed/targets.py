"""Packed rows as tensors, with the places where a language model is asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data_pipeline.shards.format import token_ids
from data_pipeline.shards.pack import segments


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetBatch:
    """B packed rows of L tokens; M targets in all."""

    input_ids: torch.Tensor
    """int [B, L], as the model sees them"""
    segments: torch.Tensor
    """int [B, L]: which document of the row, -1 for padding; attention stays within a document"""
    positions: torch.Tensor
    """int [B, L]: place within the document"""
    places: torch.Tensor
    """int [M]: places in the flattened rows whose output predicts a target"""
    labels: torch.Tensor
    """int [M]: the ids to predict"""
    streams: torch.Tensor
    """int [M]: the stream that each target is of"""
    is_packed: bool
    """Whether some row is not one document from end to end."""
    tokens: int
    """Without padding, and without rows of weight 0."""
    attention_pairs: int
    """Of those tokens, pairs that see each other: for each document its length squared, half of it for a decoder."""

    @property
    def size(self) -> int:
        return self.input_ids.numel()

    def counts(self, streams: int) -> torch.Tensor:
        """Targets of each stream, float64 [streams]."""
        return torch.bincount(self.streams, minlength=streams).double()

    def to(self, device: torch.device | str) -> "TargetBatch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TargetBatch":
        """In memory from which a GPU copies by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TargetBatch":
        tensors = {name: one for name in self.__slots__ if isinstance(one := getattr(self, name), torch.Tensor)}
        return replace(self, **{name: change(one) for name, one in tensors.items()})  # type: ignore[arg-type]


def target_batch(
    table: pa.Table,
    ids: NDArray[np.int64],
    laid: tuple[NDArray[np.int64], NDArray[np.int64]],
    places: NDArray[np.int64],
    labels: NDArray[np.int64],
    causal: bool,
) -> TargetBatch:
    """A batch of the feed's rows: ids as the model sees them [B, L], segments and positions, and the targets."""
    segment, positions = laid
    real = (segment >= 0) & (table["weight"].to_numpy() > 0)[:, None]
    seen = int((positions[real] + 1).sum())  # the k-th token of a document sees k tokens that are not behind it
    tokens = int(real.sum())
    return TargetBatch(
        input_ids=torch.from_numpy(ids),
        segments=torch.from_numpy(segment),
        positions=torch.from_numpy(positions),
        places=torch.from_numpy(places),
        labels=torch.from_numpy(labels),
        streams=torch.from_numpy(table["stream"].to_numpy().astype(np.int64)[places // ids.shape[1]]),
        is_packed=bool((segment != 0).any()),
        tokens=tokens,
        attention_pairs=seen if causal else 2 * seen - tokens,
    )


def unpack_rows(table: pa.Table, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ids, segments and positions of the feed's rows, each int [B, L]."""
    ids = token_ids(table["input_ids"], length)
    starts = table["doc_starts"].combine_chunks()
    row = np.repeat(np.arange(len(table)), starts.value_lengths().to_numpy())
    return ids, *segments(row, starts.flatten().to_numpy(), table["n_tokens"].to_numpy(), length)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """Turns rows of the feed into batches for a causal language model: every token predicts the one behind it, within
    its document."""

    length: int

    def __call__(self, table: pa.Table) -> TargetBatch:
        """Rows as the feed gives them; rows of weight 0 get no targets."""
        ids, segment, positions = unpack_rows(table, self.length)
        asked = np.zeros(segment.shape, bool)
        asked[:, :-1] = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] >= 0)
        asked &= (table["weight"].to_numpy() > 0)[:, None]
        places = np.flatnonzero(asked)
        return target_batch(table, ids, (segment, positions), places, ids.ravel()[places + 1], causal=True)
