"""Planned rows for each rank, step by step: by Ray Data inside Ray Train, or read directly.

`PlannedData` is a Ray Train DataConfig. It hands each rank a `RankFeed` instead of splitting a dataset, because a split
promises no order: each rank streams exactly its own slots, from the step at which its checkpoint says to go on, and
checks every row that it receives against the plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.train import DataConfig

from data_pipeline.feed.reader import RowReader, check_received
from data_pipeline.order.plan import OrderPlan, Slots
from data_pipeline.shards.manifest import Manifest

_WINDOW_ROWS = 512
"""Rows that one read task fetches: whole steps, at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRows:
    """A plan and the shards that it is about."""

    plan: OrderPlan
    folder: str
    manifest: Manifest
    micro: int

    def reader(self) -> RowReader:
        return RowReader(self.folder, self.manifest, tuple(stream.name for stream in self.plan.streams))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFeed:
    """The rows of one rank."""

    rows: PlannedRows
    rank: int
    world: int

    def expected(self, step: int) -> Slots:
        return self.rows.plan.for_rank(step, self.rank, self.world, self.rows.micro)

    def local(self, first: int, last: int) -> Iterator[pa.Table]:
        """The rows of each step in [first, last), read in this process."""
        reader = self.rows.reader()
        for step in range(first, last):
            yield reader.read(self.expected(step))

    def stream(self, first: int, last: int) -> Iterator[pa.Table]:
        """The same, read ahead by Ray Data tasks and checked on receipt.

        Raises:
            DataOrderError: other rows arrived than were planned.
        """
        if first >= last:
            return
        import ray

        size = len(self.expected(first))
        steps = max(1, _WINDOW_ROWS // size)
        windows = [{"first": start, "last": min(start + steps, last)} for start in range(first, last, steps)]
        dataset = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
            _read_window, fn_kwargs={"feed": self}, batch_size=1, batch_format="pyarrow", num_cpus=0.25, concurrency=2
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        batches = dataset.iter_batches(batch_size=size, batch_format="pyarrow", prefetch_batches=2)
        step = first
        for table in batches:
            check_received(self.expected(step), table, self.rank)
            yield table
            step += 1
        if step != last:
            check_received(self.expected(step), self.rows.reader().read(self.expected(first)).slice(0, 0), self.rank)


class PlannedData(DataConfig):
    """Gives rank r of w workers the feed of rank r, whatever w is."""

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        return [
            {name: RankFeed(rows=rows, rank=rank, world=world_size) for name, rows in datasets.items()}
            for rank in range(world_size)
        ]


def _read_window(batch: pa.Table, feed: RankFeed) -> pa.Table:
    reader = feed.rows.reader()
    first, last = batch["first"][0].as_py(), batch["last"][0].as_py()
    return pa.concat_tables([reader.read(feed.expected(step)) for step in range(first, last)])
