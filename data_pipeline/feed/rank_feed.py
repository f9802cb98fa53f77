"""Planned rows for each rank, step by step: by Ray Data inside Ray Train, or read directly.

`OrderedData` is a Ray Train DataConfig. It hands each rank a `RankFeed` instead of splitting a dataset, because a split
promises no order: each rank streams exactly its own slots, from the step at which its checkpoint says to go on, and
checks every row that it receives against the plan.
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
    """A plan and the shards that it is about."""

    order: RowOrder
    folder: str
    manifest: Manifest
    micro_batch: int | None
    """Rows that a rank computes at once; the whole of its share when None."""

    def micro_batch_of(self, planned: int, world: int) -> int:
        """Rows that a rank computes at once in a planned step."""
        share = -(-self.order.sizes.size(planned) // world)
        return share if self.micro_batch is None else min(self.micro_batch, share)

    @property
    def tokens_per_row(self) -> int:
        """On average, at least 1."""
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
    """The rows of one rank. Steps of training and steps of the plan differ by those that the run skipped."""

    rows: OrderedRows
    rank: int
    world: int
    skipped: tuple[tuple[int, int], ...] = ()
    """Planned steps [first, last) that are not trained on, in order."""

    def with_skipped(self, skipped: tuple[tuple[int, int], ...]) -> "RankFeed":
        return replace(self, skipped=skipped)

    def order_step(self, step: int) -> int:
        """The planned step whose rows are those of training step `step`."""
        return order_step(step, self.skipped)

    def slots(self, step: int) -> Slots:
        planned = self.order_step(step)
        return self.rows.order.for_rank(planned, self.rank, self.world, self.rows.micro_batch_of(planned, self.world))

    def expected_in(self, first: int, last: int) -> Iterator[Slots]:
        """`expected` of each step in [first, last)."""
        planned = [self.order_step(step) for step in range(first, last)]
        for step, whole in zip(planned, self.rows.order.steps(planned), strict=True):
            yield self.rows.order.rank_share(whole, self.rank, self.world, self.rows.micro_batch_of(step, self.world))

    def shape(self, step: int) -> tuple[int, int]:
        """Rows of a micro-step, and micro-steps, of training step `step` on this rank."""
        planned = self.order_step(step)
        micro = self.rows.micro_batch_of(planned, self.world)
        return micro, self.rows.order.micro_steps(planned, self.world, micro)

    def read_local(self, first: int, last: int) -> Iterator[pa.Table]:
        """The rows of each step in [first, last), read in this process."""
        reader = self.rows.reader()
        for slots in self.expected_in(first, last):
            yield reader.read(slots)

    def read_with_ray(self, first: int, last: int) -> Iterator[pa.Table]:
        """The same, read ahead by Ray Data tasks and checked on receipt. An execution of Ray Data reads a span of steps, and
        begins while the span before it is used.

        Raises:
            DataOrderError: other rows arrived than were planned.
        """
        closed = threading.Event()
        spans = self.spans(first, last)
        with ThreadPoolExecutor(1) as pool:
            try:
                coming = pool.submit(self._start, spans[0], closed) if spans else None
                for span in [*spans[1:], None]:
                    if coming is None:
                        return
                    steps, blocks = coming.result()
                    coming = pool.submit(self._start, span, closed) if span is not None else None
                    yield from self.regroup_by_step(map(_rows, blocks), steps)
            finally:
                closed.set()

    def spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """The steps [first, last) in spans that are planned and read together."""
        if first >= last:
            return []
        share = len(self.slots(last - 1))
        return read_tasks.spans(self.rows.order, (first, last), share, self.world, self.rows.tokens_per_row)

    def read_tasks(self, steps: list[Slots]) -> list[pa.Table]:
        """What each read task of a span fetches, and from where (`RowReader.locate`)."""
        reader = self.rows.reader()
        return [reader.locate(slots) for slots in read_tasks.tasks(steps, self.rows.tokens_per_row)]

    def _start(self, span: tuple[int, int], closed: threading.Event) -> tuple[list[Slots], Iterator[pa.Table]]:
        """The slots of a span and an execution of Ray Data that reads them, whose first block is there. A task gets its own
        rows' places and neither plan nor manifest. It asks for no CPU: where elastic workers have taken all, it would
        otherwise wait for good."""
        import ray

        steps = list[Slots]()
        for slots in self.expected_in(*span):
            if closed.is_set():  # planning a long span takes seconds, and nobody waits for this one
                return [], iter(())
            steps.append(slots)
        # Not from_arrow, which asks for a CPU to look at each table.
        tasks = [{"slots": _to_bytes(table)} for table in self.read_tasks(steps)]
        dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            _read_task,
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
        """The rows of each step of a span, checked, from blocks of which each holds rows of several steps. Rows that are due
        later wait here, in memory of their own: a view would keep the whole block in Ray's object store.

        Raises:
            DataOrderError: other rows arrived than were planned.
        """
        coming, waiting = iter(steps), dict[int, list[pa.Table]]()
        expected = next(coming, None)
        for planned, part in split_by_step(blocks):
            waiting.setdefault(planned, []).append(part.take(pa.array(range(len(part)))))
            while expected is not None and sum(map(len, waiting.get(int(expected.step[0]), []))) >= len(expected):
                table = pa.concat_tables(waiting.pop(int(expected.step[0]))).sort_by("slot").combine_chunks()
                check_received(expected, table, self.rank)
                yield table
                expected = next(coming, None)
        if expected is not None or waiting:
            others = sum(len(part) for parts in waiting.values() for part in parts)
            due = "the end of the steps" if expected is None else f"all of planned step {int(expected.step[0])}"
            raise DataOrderError(
                f"rank {self.rank} received {others} rows of other steps before {due}, and then no more.",
                self.rows.folder,
                "The feed is broken: report it with the log of Ray Data.",
            )


def load(uri: str, folder: str | None) -> OrderedRows:
    """The rows of a run, from what it saved; `folder` is that of the shards, if they were moved.

    Raises:
        ArtifactError: those are other shards, or the run is one of another version.
    """
    content = json.loads(storage.read_bytes(uri))
    if content.get("numbering") != NUMBERING_VERSION:
        raise ArtifactError("the rows were numbered by another version of Scion.", uri, "Verify the run with that version.")
    told = content["plan"]
    plan = RowOrder(
        streams=tuple(Stream(**stream) for stream in told["streams"]),
        batch=told["batch"],
        seed=told["seed"],
        warmup=tuple((until, batch) for until, batch in told["warmup"]),
        stages=tuple(Phase(until=stage["until"], weights=tuple(stage["weights"])) for stage in told["stages"]),
        window=told["window"],
    )
    given, folder = folder, folder or content["folder"]
    there = storage.exists(storage.join(folder, manifests.NAME))
    if given and not there:
        raise ArtifactError("no shards are here.", folder, "Name them: shards=FOLDER.")
    found = manifests.load(folder) if there else Manifest(length=0, vocab_size=0, tokenizer="", streams={})
    if there and found.id != content["manifest"]:
        raise ArtifactError("these are not the shards that the run was trained on.", folder, "Name them: shards=FOLDER.")
    return OrderedRows(order=plan, folder=folder, manifest=found, micro_batch=content["micro"])


class OrderedData(DataConfig):
    """Gives rank r of w workers the feed of rank r, whatever w is."""

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


def _read_task(batch: pa.Table, folder: str) -> pa.Table:
    """The rows of a task; or our own error as the only column, because Ray would wrap an exception in several of its own."""
    located = pa.ipc.open_stream(batch["slots"][0].as_py()).read_all()
    try:
        return read_located(folder, located)
    except ScionError as error:
        return pa.table({_ERROR: [pickle.dumps(error)]})


def _rows(block: pa.Table) -> pa.Table:
    if block.column_names == [_ERROR]:
        raise pickle.loads(block[_ERROR][0].as_py())
    return block
