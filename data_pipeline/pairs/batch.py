"""Batches of text pairs as tensors."""

from collections.abc import Callable
from copy import copy

import numpy as np
import pyarrow as pa
import torch


class PairBatch:
    """B pairs with D documents: the B positives first, then all hard negatives in the order of the pairs."""

    def __init__(self, table: pa.Table, pad: int) -> None:
        negatives = table["negatives"].to_pylist()
        documents = table["positive"].to_pylist() + [ids for row in negatives for ids in row]
        self.anchors = pad_rows(table["anchor"].to_pylist(), pad)
        self.documents = pad_rows(documents, pad)
        self.streams = torch.from_numpy(table["stream"].to_numpy().astype(np.int64))
        self.weights = torch.from_numpy(table["weight"].to_numpy().astype(np.float32))
        self.anchor_keys = torch.from_numpy(table["anchor_key"].to_numpy().copy())
        keys = table["positive_key"].to_pylist() + [key for row in table["negative_keys"].to_pylist() for key in row]
        self.document_keys = torch.tensor(keys, dtype=torch.int64)
        counts = [len(row) for row in negatives]
        self.document_weights = torch.cat([self.weights, self.weights.repeat_interleave(torch.tensor(counts))])

        masks = ((self.anchors[1], self.weights), (self.documents[1], self.document_weights))
        lengths = torch.cat([mask[weight > 0].sum(dim=1) for mask, weight in masks])
        self.tokens, self.attention_pairs = int(lengths.sum()), int((lengths**2).sum())
        self.size = sum(mask.numel() for mask, _ in masks)

    def counts(self, streams: int) -> torch.Tensor:
        """Pairs of each stream, without those of weight 0, float64 [streams]."""
        return torch.bincount(self.streams, self.weights > 0, minlength=streams).double()

    def to(self, device: torch.device | str) -> "PairBatch":
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PairBatch":
        """A copy in page-locked memory, from which a GPU copies asynchronously."""
        return self._map_tensors(torch.Tensor.pin_memory)

    def _map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "PairBatch":
        """A copy of the batch with `function` applied to each of its tensors."""
        batch = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(batch, name, function(value))
            elif isinstance(value, tuple):
                setattr(batch, name, tuple(map(function, value)))
        return batch


def pad_rows(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int [n, longest]."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask
