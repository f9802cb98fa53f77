"""Read tasks: they read each row group once for many steps, for any number of languages and workers."""

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ray import cloudpickle

from data_pipeline.errors import DataOrderError
from data_pipeline.feed import rank_feed, read_tasks
from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from data_pipeline.feed.reader import read_located
from data_pipeline.order.row_order import BLOCK, RowOrder, Slots, Stream
from data_pipeline.shards.manifest import Manifest, Shard
from tests.benchmarks import made_up

LENGTH, BATCH = 512, 2048


def languages(count: int, rows: int = 50_000) -> RowOrder:
    return RowOrder(streams=tuple(Stream(name=f"l{one:03d}", rows=rows) for one in range(count)), batch=BATCH, seed=0)


def steps_of(order: RowOrder, first: int, last: int, rank: int, world: int) -> list[Slots]:
    return [order.for_rank(step, rank, world, BATCH // world) for step in range(first, last)]


def rows_read(task: Slots) -> int:
    """The number of distinct blocks, counted one by one, times their rows."""
    return BLOCK * len(set(zip(task.stream.tolist(), task.epoch.tolist(), (task.row // BLOCK).tolist(), strict=True)))


@pytest.mark.parametrize(("count", "world", "most"), [(1, 1, 1.1), (1, 8, 2), (1, 64, 4), (20, 1, 2), (20, 8, 2), (20, 64, 2)])
def test_a_rank_reads_at_most_twice_the_rows_that_it_trains_on(count: int, world: int, most: float) -> None:
    """Except where its share of a step is less than a row group, 64 rows, and no later step needs the rest of the group."""
    order, share = languages(count), BATCH // world
    longest = max(read_tasks.spans(order, (0, 400), share, world, LENGTH), key=lambda span: span[1] - span[0])
    first, last = longest[0], min(longest[1], longest[0] + 160)
    read = sum(rows_read(task) for task in read_tasks.tasks(steps_of(order, first, last, world // 2, world), LENGTH))
    assert read <= most * share * (last - first)


@pytest.mark.parametrize("world", [1, 4])
def test_tasks_hold_each_slot_once_and_no_later_than_it_is_due(world: int) -> None:
    order = languages(5, rows=700)
    steps = steps_of(order, 3, 20, 0, world)
    window = max(1, read_tasks.WINDOW_ROWS // len(steps[0]))
    tasks = list(read_tasks.tasks(steps, LENGTH))
    slots = Slots.concat(tasks)
    expected = Slots.concat(steps)
    ranks = np.lexsort((slots.slot, slots.step))
    for name in ("step", "slot", "stream", "epoch", "row", "weight"):
        assert (getattr(slots, name)[ranks] == getattr(expected, name)).all(), name
    due = [(int(task.step.min()) - 3) // window for task in tasks]
    assert due == sorted(due)
    assert all((np.diff(task.step) >= 0).all() for task in tasks)


def test_a_block_of_a_later_epoch_is_read_when_that_epoch_is_due() -> None:
    """A stream of one block repeats it: its rows must not be sent for all epochs at once."""
    order = languages(1, rows=BLOCK)
    first = next(read_tasks.tasks(steps_of(order, 0, 20, 0, 4), LENGTH))
    assert first.epoch.max() <= BATCH // BLOCK


def test_a_task_is_small_with_any_number_of_languages() -> None:
    order = languages(100)
    sizes = [len(task) for task in read_tasks.tasks(steps_of(order, 0, 50, 0, 1), LENGTH)]
    assert max(sizes) <= 2048 + BLOCK


def test_spans_grow_from_one_window_to_the_memory_limit() -> None:
    order = languages(20)
    cuts = read_tasks.spans(order, (7, 100_000), 32, 64, LENGTH)
    assert cuts[0] == (7, 7 + read_tasks.WINDOW_ROWS // 32)
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    assert cuts[-1][1] == 100_000
    for length, count in ((LENGTH, 20), (LENGTH, 500), (8192, 100)):
        cuts = read_tasks.spans(languages(count), (0, 100_000), 32, 1, length)
        assert max(end - start for start, end in cuts) * 32 * length <= 1 << 26


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OrderedRows:
    monkeypatch.setattr(made_up, "SHARD_ROWS", 150)
    manifest = made_up.rows(str(tmp_path), {"a": 900, "b": 130}, 4, 100, seed=0)
    order = RowOrder(streams=manifest.order_streams({"a": 0.5, "b": 0.5}), batch=60, seed=2, warmup=((3, 20),), window=2)
    return OrderedRows(order=order, folder=str(tmp_path), manifest=manifest, micro_batch=None)


def read_by_tasks(feed: RankFeed, first: int, last: int) -> list[pa.Table]:
    """Runs Ray Data's read tasks in this process."""
    return [read_located(feed.rows.folder, task) for task in feed.read_tasks([feed.slots(at) for at in range(first, last)])]


@pytest.mark.parametrize("world", [1, 2, 7])
def test_tasks_yield_the_rows_of_each_step_in_order(rows: OrderedRows, world: int) -> None:
    for rank in {0, world - 1}:
        feed = RankFeed(rows=rows, rank=rank, world=world, skipped=((2, 4),))
        tables = feed.regroup_by_step(iter(read_by_tasks(feed, 1, 40)), [feed.slots(step) for step in range(1, 40)])
        for streamed, local in zip(tables, feed.read_local(1, 40), strict=True):
            assert streamed.select(local.column_names).equals(local)


def test_lost_or_duplicated_rows_are_an_error(rows: OrderedRows) -> None:
    feed = RankFeed(rows=rows, rank=0, world=1)
    steps, blocks = [feed.slots(step) for step in range(20)], read_by_tasks(feed, 0, 20)
    for wrong in ([*blocks[:-1], blocks[-1].slice(1)], [*blocks, blocks[0].slice(0, 1)], blocks[1:]):
        with pytest.raises(DataOrderError):
            list(feed.regroup_by_step(iter(wrong), steps))


def test_waiting_rows_do_not_keep_their_block_in_memory(rows: OrderedRows) -> None:
    feed = RankFeed(rows=rows, rank=0, world=1)
    (block,) = read_by_tasks(feed, 0, 8)
    places = {buffer.address for column in block.columns for buffer in column.chunk(0).buffers() if buffer is not None}
    for step in feed.regroup_by_step(iter([block]), [feed.slots(step) for step in range(8)]):
        assert not places & {one.address for column in step.columns for one in column.chunk(0).buffers() if one is not None}


def test_a_task_carries_its_own_rows_and_not_the_manifest() -> None:
    """10,000 shards: the manifest alone takes more than a MiB."""
    sizes = dict.fromkeys(("tokens", "text_tokens", "text_bytes", "padding", "documents", "cut"), 1)
    shards = tuple(Shard(path=f"a/part-{at:05d}.parquet", rows=640, sha256=f"{at:064x}", **sizes) for at in range(10_000))
    manifest = Manifest(length=LENGTH, vocab_size=100, tokenizer="none", streams={"a": shards})
    order = RowOrder(streams=manifest.order_streams({"a": 1.0}), batch=64, seed=0)
    feed = RankFeed(rows=OrderedRows(order=order, folder="s3://shards", manifest=manifest, micro_batch=None), rank=0, world=1)
    tasks = feed.read_tasks([feed.slots(step) for step in range(100)])
    sent = [len(pickle.dumps(task)) + len(cloudpickle.dumps((rank_feed.run_read_task, feed.rows.folder))) for task in tasks]
    assert len(pickle.dumps(manifest)) > 1 << 20
    assert max(sent) < 64 << 10
