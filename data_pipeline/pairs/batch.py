"""Batches of text pairs as tensors, in chunks of texts of similar length."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from data_pipeline.pairs import CHUNK_TOKENS
from data_pipeline.pairs.text_form import TokenizedText


class Chunk(NamedTuple):
    """Texts that one forward pass encodes."""

    ids: torch.Tensor
    """int [n, longest]"""
    mask: torch.Tensor
    """int [n, longest], 0 for padding"""
    skipped: torch.Tensor
    """int [n], how many of a text's first tokens are not pooled"""


class PairBatch:
    """B pairs with D documents: the B positives first, then all hard negatives in the order of the pairs.

    Anchors and documents alike are texts to encode. Texts of similar length share a chunk, which one forward pass encodes;
    `texts_in_order` brings the vectors of all chunks back to the order of the texts: the anchors, then the documents.

    Args:
        chunk_tokens: most tokens in a chunk, with padding.
    """

    def __init__(self, table: pa.Table, pad: int, chunk_tokens: int = CHUNK_TOKENS["cpu"]) -> None:
        negatives = table["negatives"].to_pylist()
        positives = table["positive"].to_pylist()
        texts = _with_skips(table, [*table["anchor"].to_pylist(), *positives, *(ids for row in negatives for ids in row)])
        counts = torch.tensor([len(row) for row in negatives], dtype=torch.int64)
        dealt = list(batches_by_length(texts, chunk_tokens))
        self.chunks = [pad_rows([texts[place] for place in places], pad) for places in dealt]
        self.texts_in_order = torch.from_numpy(np.argsort(np.concatenate(dealt), kind="stable"))

        self.pad, self.chunk_tokens = pad, chunk_tokens

        self.streams = _int64(table["stream"])
        self.weights = torch.from_numpy(table["weight"].to_numpy().astype(np.float32))
        self.anchor_keys, self.positive_keys = _int64(table["anchor_key"]), _int64(table["positive_key"])
        self.negative_keys = torch.tensor([key for row in table["negative_keys"].to_pylist() for key in row], dtype=torch.int64)
        self.owners = torch.cat([torch.arange(len(table)), torch.arange(len(table)).repeat_interleave(counts)])
        """int [D], the pair of each document."""
        self.scores = _scores(table, counts)
        """fp32 [D], a teacher's score of each document for its pair's anchor; NaN where missing."""
        self.in_batch = _in_batch(table)
        """bool [B], whether a pair shares documents with others: if not, its candidates are its own documents only."""

        self.teacher = _teacher(table, len(texts))
        """fp32 [B + D, d], a teacher's vectors of the anchors, then of the documents; of width 0 without a teacher."""

        is_real = torch.cat([self.weights, self.weights[self.owners]]) > 0
        lengths = torch.tensor([len(text) for text in texts])[is_real]
        self.tokens, self.attention_pairs = int(lengths.sum()), int((lengths**2).sum())
        self.size = sum(chunk.mask.numel() for chunk in self.chunks)

    def with_chunks(self, count: int) -> "PairBatch":
        """The batch with as many chunks, the added ones of one token each that no text uses."""
        batch, missing = copy(self), count - len(self.chunks)
        one = self.chunks[0].ids.new_full((1, 1), self.pad)
        batch.chunks = [*self.chunks, *[Chunk(one, torch.ones_like(one), torch.zeros_like(one[0]))] * missing]
        return batch

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
        batch.chunks = [Chunk(*map(function, chunk)) for chunk in self.chunks]
        return batch


def batches_by_length(ids: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[int]]:
    """Groups texts of similar length into batches of indices.

    A batch has at most `most_tokens` padded tokens; a text that exceeds them is a batch by itself.
    """
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]), reverse=True)
    batch: list[int] = []
    for index in order:
        longest = len(ids[batch[0]]) if batch else 0
        # At most half of a batch is padding: one long text would make every short one cost as much as itself.
        if batch and ((len(batch) + 1) * longest > most_tokens or 2 * len(ids[index]) < longest):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> Chunk:
    """The rows padded on the right; an empty row is one token of padding that counts."""
    lengths = np.array([max(1, len(row)) for row in rows])
    ids = np.full((len(rows), lengths.max()), pad, np.int64)
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    ids[mask] = np.concatenate([row or [pad] for row in rows])
    skipped = torch.tensor([getattr(row, "skip", 0) for row in rows], dtype=torch.int64)
    return Chunk(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)), skipped)


def _with_skips(table: pa.Table, texts: list[list[int]]) -> list[list[int]]:
    """The texts with the numbers of their first tokens that are not pooled, where the rows name them."""
    if "anchor_skip" not in table.column_names:
        return texts
    negatives = [skip for row in table["negative_skips"].to_pylist() for skip in row]
    skips = [*table["anchor_skip"].to_pylist(), *table["positive_skip"].to_pylist(), *negatives]
    return [TokenizedText(ids, skip) for ids, skip in zip(texts, skips, strict=True)]


def _scores(table: pa.Table, counts: torch.Tensor) -> torch.Tensor:
    """The scores of the positives, then of all hard negatives, fp32 [D]; NaN in shards from before there were scores."""
    if "positive_score" not in table.column_names:
        return torch.full((len(table) + int(counts.sum()),), float("nan"))
    scores = [*table["positive_score"].to_pylist(), *(one for row in table["negative_scores"].to_pylist() for one in row)]
    return torch.tensor(scores, dtype=torch.float32)


def _teacher(table: pa.Table, texts: int) -> torch.Tensor:
    """The vectors of the anchors, the positives, then all hard negatives, fp32 [texts, d]; of width 0 where there are none."""
    if "anchor_vector" not in table.column_names:
        return torch.zeros(texts, 0)
    columns = [table["anchor_vector"], table["positive_vector"], pc.list_flatten(table["negative_vectors"])]
    flat = [pc.list_flatten(column).to_numpy().astype(np.float32) for column in columns]
    return torch.from_numpy(np.concatenate(flat).reshape(texts, -1))


def _in_batch(table: pa.Table) -> torch.Tensor:
    """Whether each pair shares candidates, bool [B]; all in shards from before there was the column."""
    if "in_batch" not in table.column_names:
        return torch.ones(len(table), dtype=torch.bool)
    return torch.tensor(table["in_batch"].to_pylist(), dtype=torch.bool)


def _int64(column: Any) -> torch.Tensor:
    return torch.from_numpy(column.to_numpy().astype(np.int64))
