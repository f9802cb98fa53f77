"""Bits per byte on held-out rows, computed by all ranks during training."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from data_pipeline.errors import DataError
from data_pipeline.feed.reader import RowReader
from data_pipeline.order.row_order import Slots
from data_pipeline.shards.manifest import Manifest
from trainer.models.packed_lm import bits_per_byte
from trainer.tasks.language_modeling import LanguageModelTask
from trainer.tasks.task import Batch

_EACH = 4
"""The fewest rows to score of a language that has so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutText:
    """The held-out rows to score: the same rows and masks at every step of every run."""

    measure: ClassVar[str] = "bits_per_byte"
    """The score that the run keeps."""
    folder: str
    manifest: Manifest
    task: LanguageModelTask
    """Its seed keys the masks."""
    rows: int
    """Rows to score, at even distances in the held-out text; all rows if it has fewer. Each of several languages has at least
    `_EACH`, beyond this number if necessary."""
    batch: int = 8

    def score(self, engine: Any, rank: int, world: int) -> dict[str, Any]:
        """The scores as JSON."""
        return asdict(evaluate(engine, self, rank, world))

    def slots(self) -> Slots:
        """The chosen rows over all streams, in order."""
        counts = np.array([sum(shard.rows for shard in shards) for shards in self.manifest.streams.values()], np.int64)
        if counts.sum() == 0:
            raise DataError("there is no held-out text.", self.folder, "Give test_text= or a larger shard.heldout.")
        shares = np.minimum(counts, np.maximum(_EACH, np.round(self.rows * counts / counts.sum()).astype(np.int64)))
        if len(counts) == 1:
            shares = np.minimum(counts, self.rows)
        rows = [np.linspace(0, count - 1, share).astype(np.int64) for count, share in zip(counts, shares, strict=True)]
        chosen, stream = np.concatenate(rows), np.repeat(np.arange(len(counts)), shares)
        zeros = np.zeros(len(chosen), np.int64)
        return Slots(
            step=zeros,
            slot=np.arange(len(chosen)),
            stream=stream,
            epoch=zeros,
            row=chosen,
            weight=np.ones(len(chosen), np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Bits per byte: of the held-out text, languages weighted by their bytes, and of each language."""

    bits_per_byte: float
    by_language: dict[str, float]


def evaluate(engine: Any, heldout: HeldoutText, rank: int, world: int) -> Scores:
    """The scores of the engine's module, the same on every rank.

    Rows are dealt to the ranks in turn. Every rank runs as many batches, the last ones perhaps of weight 0, because a
    forward under ZeRO-3 is collective.
    """
    slots = heldout.slots()
    reader = RowReader(heldout.folder, heldout.manifest, tuple(heldout.manifest.streams))
    masker = _collator(heldout.task)
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
    found = {name: _score(heldout.manifest, name, nll[at], targets[at]) for at, name in enumerate(names) if targets[at]}
    # Small languages have more than their share of the rows: each counts by its bytes.
    sizes = {name: _total(heldout.manifest, name, "text_bytes") for name in found}
    whole = sum(found[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))
    return Scores(bits_per_byte=whole, by_language=found)


@lru_cache(maxsize=1)
def _collator(task: LanguageModelTask) -> Callable[[pa.Table], Batch]:
    """Made once a run: it reads the model's folder, which may be far away."""
    return task.collator()


def _score(manifest: Manifest, name: str, nll: float, targets: float) -> float:
    return bits_per_byte(nll, int(targets), _total(manifest, name, "text_tokens"), _total(manifest, name, "text_bytes"))


def _total(manifest: Manifest, name: str, field: str) -> int:
    return sum(getattr(shard, field) for shard in manifest.streams[name])
