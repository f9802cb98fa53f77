"""Bits per byte on held-out rows, computed by all ranks together in the middle of training."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.errors import DataError
from data_pipeline.feed.reader import RowReader
from data_pipeline.order.plan import Slots
from data_pipeline.shards.manifest import Manifest
from trainer.engine.tasks import LanguageModelTask
from trainer.models.packed_lm import bits_per_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Heldout:
    """Which held-out rows are scored, and how: the same rows and the same masks at every step of every run."""

    folder: str
    manifest: Manifest
    task: LanguageModelTask
    """Its seed keys the masks."""
    rows: int
    """Rows that are scored, spread evenly over the held-out text; all of them when it has fewer."""
    batch: int = 8

    def slots(self) -> Slots:
        """The chosen rows over all streams, in order."""
        counts = [sum(shard.rows for shard in shards) for shards in self.manifest.streams.values()]
        total = sum(counts)
        if total == 0:
            raise DataError("there is no held-out text.", self.folder, "Give test_text= or a larger shard.heldout.")
        chosen = np.unique(np.linspace(0, total - 1, min(self.rows, total)).astype(np.int64))
        stream = np.searchsorted(np.cumsum(counts), chosen, side="right")
        zeros = np.zeros(len(chosen), np.int64)
        return Slots(
            step=zeros,
            slot=np.arange(len(chosen)),
            stream=stream,
            epoch=zeros,
            row=chosen - np.concatenate([[0], np.cumsum(counts)])[stream],
            weight=np.ones(len(chosen), np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Bits per byte: of all rows that were scored, and of those of each language."""

    bits_per_byte: float
    by_language: dict[str, float]


def evaluate(engine: Any, heldout: Heldout, rank: int, world: int) -> Scores:
    """Scores of the engine's module, the same on every rank.

    Rows are dealt to the ranks in turn. Every rank runs as many batches, the last ones perhaps of weight 0, because a
    forward under ZeRO-3 is collective.
    """
    slots = heldout.slots()
    reader = RowReader(heldout.folder, heldout.manifest, tuple(heldout.manifest.streams))
    masker = heldout.task.collator()
    share = -(-len(slots) // world)
    names = list(heldout.manifest.streams)
    totals = torch.zeros(2, len(names), dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for start in range(0, share, heldout.batch):
            index = (np.arange(start, min(start + heldout.batch, share)) * world + rank) % (share * world)
            real = index < len(slots)
            rows = replace(slots.take(np.where(real, index, 0)), weight=real.astype(np.float32))
            batch = masker(reader.read(rows)).to(engine.device)
            losses = engine.module(batch).double()
            totals.index_add_(1, batch.streams, torch.stack([losses, torch.ones_like(losses)]))
    engine.train()
    dist.all_reduce(totals)
    nll, targets = totals.tolist()
    return Scores(
        bits_per_byte=_score(heldout.manifest, names, sum(nll), sum(targets)),
        by_language={
            name: _score(heldout.manifest, [name], nll[number], targets[number])
            for number, name in enumerate(names)
            if targets[number]
        },
    )


def _score(manifest: Manifest, streams: list[str], nll: float, targets: float) -> float:
    shards = [shard for name in streams for shard in manifest.streams[name]]
    tokens, size = (sum(getattr(shard, field) for shard in shards) for field in ("text_tokens", "text_bytes"))
    return bits_per_byte(nll, int(targets), tokens, size)
