"""Feeds each rank its rows in order, step by step: by Ray Data inside Ray Train, or read directly.

`OrderedData` is a Ray Train DataConfig. It hands each rank a `RankFeed` instead of splitting a dataset, because a split
guarantees no order. A rank reads exactly its own slots, from the step at which its checkpoint resumes, and checks every
row that it receives against the order.
"""

import itertools
import json
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
from ray.train import DataConfig

from data_pipeline.artifacts import storage
from data_pipeline.errors import ArtifactError, DataOrderError, ScionError
from data_pipeline.feed import read_tasks
from data_pipeline.feed.reader import NUMBERING_VERSION, RowReader, check_received, read_located, split_by_step
from data_pipeline.order.row_order import Phase, RowOrder, Slots, Stream, order_step
from data_pipeline.shards import manifest as manifests
from data_pipeline.shards.manifest import Manifest

_ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedRows:
    """The shards of a run and the order of their rows."""

    order: RowOrder
    folder: str
    manifest: Manifest
    micro_batch: int | None
    """Rows that a rank computes at once; None for all rows of its share."""

    def micro_batch_of(self, step: int, world: int) -> int:
        """Rows that a rank computes at once in an order step."""
        share = -(-self.order.sizes.size(step) // world)
        return share if self.micro_batch is None else min(self.micro_batch, share)

    @property
    def tokens_per_row(self) -> int:
        """The average, at least 1."""
        return self.manifest.length or max(1, self.manifest.total("tokens") // max(1, self.manifest.total("rows")))

    def save(self, uri: str) -> None:
        """Writes what `load` reads."""
        content = {"folder": self.folder, "manifest": self.manifest.id, "micro": self.micro_batch, "plan": asdict(self.order)}
        content["numbering"] = NUMBERING_VERSION
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())

    def reader(self) -> RowReader:
        return RowReader(self.folder, self.manifest, tuple(stream.name for stream in self.order.streams))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFeed:
    """The rows of one rank. Training steps and order steps differ by the order steps that the run skipped."""

    rows: OrderedRows
    rank: int
    world: int
    skipped: tuple[tuple[int, int], ...] = ()
    """Order steps [first, last) that are not trained on, ascending."""

    def with_skipped(self, skipped: tuple[tuple[int, int], ...]) -> "RankFeed":
        return replace(self, skipped=skipped)

    def order_step(self, step: int) -> int:
        """The order step that training step `step` computes."""
        return order_step(step, self.skipped)

    def slots(self, step: int) -> Slots:
        """The slots of training step `step`."""
        at = self.order_step(step)
        return self.rows.order.for_rank(at, self.rank, self.world, self.rows.micro_batch_of(at, self.world))

    def slots_in(self, first: int, last: int) -> Iterator[Slots]:
        """The slots of each training step in [first, last)."""
        order_steps = [self.order_step(step) for step in range(first, last)]
        for at, whole in zip(order_steps, self.rows.order.steps(order_steps), strict=True):
            yield self.rows.order.rank_share(whole, self.rank, self.world, self.rows.micro_batch_of(at, self.world))

    def shape(self, step: int) -> tuple[int, int]:
        """Rows of a micro-batch, and number of micro-batches, of training step `step` on this rank."""
        at = self.order_step(step)
        micro = self.rows.micro_batch_of(at, self.world)
        return micro, self.rows.order.micro_steps(at, self.world, micro)

    def read_local(self, first: int, last: int) -> Iterator[pa.Table]:
        """Reads the rows of each step in [first, last) in this process."""
        reader = self.rows.reader()
        for slots in self.slots_in(first, last):
            yield reader.read(slots)

    def read_with_ray(self, first: int, last: int) -> Iterator[pa.Table]:
        """Reads the same ahead of time in Ray Data tasks, and checks the rows on receipt.

        An execution of Ray Data reads a span of steps; the next one starts while the current span is consumed.

        Raises:
            DataOrderError: a row differs from the order.
        """
        closed = threading.Event()
        spans = self.spans(first, last)
        with ThreadPoolExecutor(1) as pool:
            try:
                execution = pool.submit(self._start, spans[0], closed) if spans else None
                for span in [*spans[1:], None]:
                    if execution is None:
                        return
                    steps, blocks = execution.result()
                    execution = pool.submit(self._start, span, closed) if span is not None else None
                    yield from self.regroup_by_step(map(_raise_error, blocks), steps)
            finally:
                closed.set()

    def spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cuts the steps [first, last) into spans that are read together."""
        if first >= last:
            return []
        share = len(self.slots(last - 1))
        return read_tasks.spans(self.rows.order, (first, last), share, self.world, self.rows.tokens_per_row)

    def read_tasks(self, steps: list[Slots]) -> list[pa.Table]:
        """The rows that each read task of a span reads, with their locations (`RowReader.locate`)."""
        reader = self.rows.reader()
        return [reader.locate(slots) for slots in read_tasks.tasks(steps, self.rows.tokens_per_row)]

    def _start(self, span: tuple[int, int], closed: threading.Event) -> tuple[list[Slots], Iterator[pa.Table]]:
        """Starts an execution of Ray Data that reads a span.

        Returns the span's slots and the blocks, once the first block has arrived. A task gets the locations of its own rows,
        neither order nor manifest. It reserves no CPU: it would wait for ever where elastic workers have taken all.
        """
        import ray

        steps = list[Slots]()
        for slots in self.slots_in(*span):
            if closed.is_set():  # the order of a long span takes seconds, and the consumer is gone
                return [], iter(())
            steps.append(slots)
        # Not from_arrow, which reserves a CPU to look at each table.
        tasks = [{"slots": _to_bytes(table)} for table in self.read_tasks(steps)]
        dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            run_read_task,
            fn_kwargs={"folder": self.rows.folder},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            concurrency=2,
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
        return steps, itertools.chain([next(blocks)], blocks)

    def regroup_by_step(self, blocks: Iterator[pa.Table], steps: list[Slots]) -> Iterator[pa.Table]:
        """Yields the checked rows of each step of a span, from blocks that hold rows of several steps.

        Rows that are due later wait here as copies: a view would keep the whole block in Ray's object store.

        Raises:
            DataOrderError: a row differs from the order.
        """
        remaining, waiting = iter(steps), dict[int, list[pa.Table]]()
        expected = next(remaining, None)
        for step, part in split_by_step(blocks):
            waiting.setdefault(step, []).append(part.take(pa.array(range(len(part)))))
            while expected is not None and sum(map(len, waiting.get(int(expected.step[0]), []))) >= len(expected):
                table = pa.concat_tables(waiting.pop(int(expected.step[0]))).sort_by("slot").combine_chunks()
                check_received(expected, table, self.rank)
                yield table
                expected = next(remaining, None)
        if expected is not None or waiting:
            others = sum(len(part) for parts in waiting.values() for part in parts)
            due = "the end of the steps" if expected is None else f"all of order step {int(expected.step[0])}"
            raise DataOrderError(
                f"rank {self.rank} received {others} rows of other steps before {due}, and then no more.",
                self.rows.folder,
                "The feed is broken: report it with the log of Ray Data.",
            )


def load(uri: str, folder: str | None) -> OrderedRows:
    """Reads what `OrderedRows.save` wrote. `folder` is the shards' folder if they were moved.

    Raises:
        ArtifactError: the shards are not those of the run, or another version wrote the run.
    """
    content = json.loads(storage.read_bytes(uri))
    if content.get("numbering") != NUMBERING_VERSION:
        raise ArtifactError("the rows were numbered by another version of Scion.", uri, "Verify the run with that version.")
    saved = content["plan"]
    order = RowOrder(
        streams=tuple(Stream(**stream) for stream in saved["streams"]),
        batch=saved["batch"],
        seed=saved["seed"],
        warmup=tuple((until, batch) for until, batch in saved["warmup"]),
        stages=tuple(Phase(until=phase["until"], weights=tuple(phase["weights"])) for phase in saved["stages"]),
        window=saved["window"],
        whole_steps=saved.get("whole_steps", False),  # runs from before there was a choice have none
    )
    was_given, folder = bool(folder), folder or content["folder"]
    exists = storage.exists(storage.join(folder, manifests.NAME))
    if was_given and not exists:
        raise ArtifactError("no shards are here.", folder, "Name their folder: shards=FOLDER.")
    manifest = manifests.load(folder) if exists else Manifest(length=0, vocab_size=0, tokenizer="", streams={})
    if exists and manifest.id != content["manifest"]:
        raise ArtifactError("these are not the shards that the run was trained on.", folder, "Name those: shards=FOLDER.")
    return OrderedRows(order=order, folder=folder, manifest=manifest, micro_batch=content["micro"])


class OrderedData(DataConfig):
    """Gives each rank its own feed, for any number of workers."""

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        return [
            {name: RankFeed(rows=rows, rank=rank, world=world_size) for name, rows in datasets.items()}
            for rank in range(world_size)
        ]


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def run_read_task(batch: pa.Table, folder: str) -> pa.Table:
    """The rows of a task; or our own error, pickled as the only column, because Ray would wrap an exception."""
    located = pa.ipc.open_stream(batch["slots"][0].as_py()).read_all()
    try:
        return read_located(folder, located)
    except ScionError as error:
        return pa.table({_ERROR: [pickle.dumps(error)]})


def _raise_error(block: pa.Table) -> pa.Table:
    """The block unchanged; raises the error that it carries."""
    if block.column_names == [_ERROR]:
        raise pickle.loads(block[_ERROR][0].as_py())
    return block
