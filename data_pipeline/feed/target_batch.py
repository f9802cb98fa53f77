"""Packed rows as tensors, with the places at which a language model predicts a token."""

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
    """int [B, L]: number of the document in its row, -1 for padding; attention stays within a document"""
    positions: torch.Tensor
    """int [B, L]: place within the document"""
    places: torch.Tensor
    """int [M]: places in the flattened rows whose output predicts a target"""
    labels: torch.Tensor
    """int [M]: the ids to predict"""
    streams: torch.Tensor
    """int [M]: the stream of each target"""
    is_packed: bool
    """False if every row is one document from end to end."""
    tokens: int
    """Tokens without padding and without rows of weight 0."""
    attention_pairs: int
    """Pairs of these tokens that attend to each other: each document's length squared, about half of it for a decoder."""

    @property
    def size(self) -> int:
        return self.input_ids.numel()

    def counts(self, streams: int) -> torch.Tensor:
        """Targets of each stream, float64 [streams]."""
        return torch.bincount(self.streams, minlength=streams).double()

    def to(self, device: torch.device | str) -> "TargetBatch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TargetBatch":
        """A copy in page-locked memory, from which a GPU copies asynchronously."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "TargetBatch":
        values = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def target_batch(
    table: pa.Table,
    ids: NDArray[np.int64],
    layout: tuple[NDArray[np.int64], NDArray[np.int64]],
    places: NDArray[np.int64],
    labels: NDArray[np.int64],
    causal: bool,
) -> TargetBatch:
    """A batch of the feed's rows.

    Args:
        ids: int [B, L], as the model sees them.
        layout: segments and positions, int [B, L] each.
        places, labels: int [M], the targets.
    """
    segment, positions = layout
    is_real = (segment >= 0) & (table["weight"].to_numpy() > 0)[:, None]
    causal_pairs = int((positions[is_real] + 1).sum())  # the k-th token of a document attends to k tokens
    tokens = int(is_real.sum())
    return TargetBatch(
        input_ids=torch.from_numpy(ids),
        segments=torch.from_numpy(segment),
        positions=torch.from_numpy(positions),
        places=torch.from_numpy(places),
        labels=torch.from_numpy(labels),
        streams=torch.from_numpy(table["stream"].to_numpy().astype(np.int64)[places // ids.shape[1]]),
        is_packed=bool((segment != 0).any()),
        tokens=tokens,
        attention_pairs=causal_pairs if causal else 2 * causal_pairs - tokens,
    )


def unpack_rows(table: pa.Table, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ids, segments and positions of the feed's rows, each int [B, L]."""
    ids = token_ids(table["input_ids"], length)
    starts = table["doc_starts"].combine_chunks()
    row = np.repeat(np.arange(len(table)), starts.value_lengths().to_numpy())
    return ids, *segments(row, starts.flatten().to_numpy(), table["n_tokens"].to_numpy(), length)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """Turns the feed's rows into batches for a causal language model: each token predicts the next one of its document."""

    length: int

    def __call__(self, table: pa.Table) -> TargetBatch:
        """Builds the batch of a table of the feed; rows of weight 0 get no targets."""
        ids, segment, positions = unpack_rows(table, self.length)
        has_target = np.zeros(segment.shape, bool)
        has_target[:, :-1] = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] >= 0)
        has_target &= (table["weight"].to_numpy() > 0)[:, None]
        places = np.flatnonzero(has_target)
        return target_batch(table, ids, (segment, positions), places, ids.ravel()[places + 1], causal=True)
