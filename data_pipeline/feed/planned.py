"""Planned rows for each rank, step by step: by Ray Data inside Ray Train, or read directly.

`PlannedData` is a Ray Train DataConfig. It hands each rank a `RankFeed` instead of splitting a dataset, because a split
promises no order: each rank streams exactly its own slots, from the step at which its checkpoint says to go on, and
checks every row that it receives against the plan.
"""

import itertools
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
from ray.train import DataConfig

from data_pipeline import storage
from data_pipeline.errors import ArtifactError, DataOrderError, ScionError
from data_pipeline.feed.reader import NUMBERING, RowReader, by_step, check_received
from data_pipeline.order.plan import OrderPlan, Slots, Stage, Stream, planned_step
from data_pipeline.shards import manifest as manifests
from data_pipeline.shards.manifest import Manifest

_WINDOW_ROWS = 512
"""Rows that one read task fetches: whole steps, at least one."""
_PART_WINDOWS = 64
"""Windows of one execution of Ray Data."""
_AHEAD = 8
"""Windows that may arrive before the one that is next."""
_ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRows:
    """A plan and the shards that it is about."""

    plan: OrderPlan
    folder: str
    manifest: Manifest
    micro: int | None
    """Rows that a rank computes at once; the whole of its share when None."""

    def micro_of(self, planned: int, world: int) -> int:
        """Rows that a rank computes at once in a planned step."""
        share = -(-self.plan.sizes.size(planned) // world)
        return share if self.micro is None else min(self.micro, share)

    def save(self, uri: str) -> None:
        """Writes what `load` reads."""
        content = {"folder": self.folder, "manifest": self.manifest.id, "micro": self.micro, "plan": asdict(self.plan)}
        content["numbering"] = NUMBERING
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())

    def reader(self) -> RowReader:
        return RowReader(self.folder, self.manifest, tuple(stream.name for stream in self.plan.streams))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFeed:
    """The rows of one rank. Steps of training and steps of the plan differ by those that the run skipped."""

    rows: PlannedRows
    rank: int
    world: int
    skipped: tuple[tuple[int, int], ...] = ()
    """Planned steps [first, last) that are not trained on, in order."""

    def without(self, skipped: tuple[tuple[int, int], ...]) -> "RankFeed":
        return replace(self, skipped=skipped)

    def planned(self, step: int) -> int:
        """The planned step whose rows are those of training step `step`."""
        return planned_step(step, self.skipped)

    def expected(self, step: int) -> Slots:
        planned = self.planned(step)
        return self.rows.plan.for_rank(planned, self.rank, self.world, self.rows.micro_of(planned, self.world))

    def shape(self, step: int) -> tuple[int, int]:
        """Rows of a micro-step, and micro-steps, of training step `step` on this rank."""
        planned = self.planned(step)
        micro = self.rows.micro_of(planned, self.world)
        return micro, self.rows.plan.micro_steps(planned, self.world, micro)

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
        steps = max(1, _WINDOW_ROWS // len(self.expected(last - 1)))
        yield from self.in_turn(self._blocks(first, last, steps), first, last, _AHEAD * steps)

    def _blocks(self, first: int, last: int, steps: int) -> Iterator[pa.Table]:
        """Blocks of `steps` steps, read by one execution of Ray Data after another, each begun while the one before is used:
        what is begun at once does not grow with the run, and no start is waited for but the first."""
        parts = [(start, min(start + _PART_WINDOWS * steps, last)) for start in range(first, last, _PART_WINDOWS * steps)]
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._begun, *parts[0], steps)
            for part in [*parts[1:], None]:
                blocks = coming.result()
                if part is not None:
                    coming = pool.submit(self._begun, *part, steps)
                yield from map(_rows, blocks)

    def _begun(self, first: int, last: int, steps: int) -> Iterator[pa.Table]:
        """An execution of Ray Data whose first block is there. Its tasks ask for no CPU, being few: where elastic workers have
        taken all, they would otherwise wait for good."""
        import ray

        windows = [{"first": start, "last": min(start + steps, last)} for start in range(first, last, steps)]
        dataset = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
            _read_window, fn_kwargs={"feed": self}, batch_size=1, batch_format="pyarrow", num_cpus=0, concurrency=2
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
        return itertools.chain([next(blocks)], blocks)

    def in_turn(self, blocks: Iterator[pa.Table], first: int, last: int, ahead: int) -> Iterator[pa.Table]:
        """The rows of each step in [first, last) from blocks that come in about that order, each checked; at most `ahead`
        steps are held back.

        Raises:
            DataOrderError: other rows arrived than were planned, or too much came before what is next.
        """
        step, held, expected = first, dict[int, list[pa.Table]](), self.expected(first)
        for planned, part in by_step(blocks):
            held.setdefault(planned, []).append(part)
            while step < last and sum(map(len, held.get(self.planned(step), []))) >= len(expected):
                table = pa.concat_tables(held.pop(self.planned(step))).combine_chunks()
                check_received(expected, table, self.rank)
                yield table
                step += 1
                expected = self.expected(step)
            if len(held) > ahead:
                raise DataOrderError(
                    f"rank {self.rank} received {len(held)} other steps before all of step {step}.",
                    self.rows.folder,
                    "The feed is broken: report it with the log of Ray Data.",
                )
        if step < last or held:
            came = f"{sum(map(len, held.values()))} rows that were not asked for" if held else "nothing more"
            raise DataOrderError(f"rank {self.rank} has had all steps before {step} of {last} and {came}.", self.rows.folder)


def load(uri: str, folder: str | None) -> PlannedRows:
    """The rows of a run, from what it saved; `folder` is that of the shards, if they were moved.

    Raises:
        ArtifactError: those are other shards, or the run is one of another version.
    """
    content = json.loads(storage.read_bytes(uri))
    if content.get("numbering") != NUMBERING:
        raise ArtifactError("the rows were numbered by another version of Scion.", uri, "Verify the run with that version.")
    told = content["plan"]
    plan = OrderPlan(
        streams=tuple(Stream(**stream) for stream in told["streams"]),
        batch=told["batch"],
        seed=told["seed"],
        warmup=tuple((until, batch) for until, batch in told["warmup"]),
        stages=tuple(Stage(until=stage["until"], weights=tuple(stage["weights"])) for stage in told["stages"]),
        window=told["window"],
    )
    folder = folder or content["folder"]
    there = storage.exists(storage.join(folder, manifests.NAME))
    found = manifests.load(folder) if there else Manifest(length=0, vocab_size=0, tokenizer="", streams={})
    if there and found.id != content["manifest"]:
        raise ArtifactError("these are not the shards that the run was trained on.", folder, "Name them: shards=FOLDER.")
    return PlannedRows(plan=plan, folder=folder, manifest=found, micro=content["micro"])


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
    """The rows of a window, or, as the only column, what Scion has to say against them: an exception of ours would arrive
    inside others, of Ray's."""
    first, last = batch["first"][0].as_py(), batch["last"][0].as_py()
    try:
        return feed.rows.reader().read(Slots.joined([feed.expected(step) for step in range(first, last)]))
    except ScionError as error:
        return pa.table({_ERROR: [pickle.dumps(error)]})


def _rows(block: pa.Table) -> pa.Table:
    if block.column_names == [_ERROR]:
        raise pickle.loads(block[_ERROR][0].as_py())
    return block
