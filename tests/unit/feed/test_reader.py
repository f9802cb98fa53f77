"""Rows from shards: each number is one row, for shards of any size, and a block of the order is one row group."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.artifacts import storage
from data_pipeline.feed.reader import RowReader
from data_pipeline.order.row_order import BLOCK, Slots
from data_pipeline.shards import format
from data_pipeline.shards.manifest import Manifest, Shard

SIZES = {"el": [100, 64, 0, 3, 200], "en": [10]}


def slots(stream: list[int], row: list[int]) -> Slots:
    zeros = np.zeros(len(row), np.int64)
    place = np.arange(len(row))
    numbers = {"stream": np.array(stream), "row": np.array(row)}
    return Slots(step=zeros, slot=place, epoch=zeros, weight=np.ones(len(row), np.float32), **numbers)


@pytest.fixture
def reader(tmp_path: Path) -> RowReader:
    """A reader of shards whose rows hold their own shard and place."""
    streams = dict[str, tuple[Shard, ...]]()
    for name, sizes in SIZES.items():
        shards = list[Shard]()
        for number, rows in enumerate(sizes):
            path = f"{name}/part-{number:05d}.parquet"
            table = pa.table({"shard": pa.array([number] * rows, pa.int64()), "place": pa.array(range(rows), pa.int64())})
            sha256 = format.write(storage.join(str(tmp_path), path), table)
            size = dict.fromkeys(("tokens", "text_tokens", "text_bytes", "padding", "documents", "cut"), 0)
            shards.append(Shard(path=path, rows=rows, sha256=sha256, **size))
        streams[name] = tuple(shards)
    manifest = Manifest(length=0, vocab_size=0, tokenizer="none", streams=streams)
    return RowReader(str(tmp_path), manifest, tuple(SIZES))


def test_each_row_number_is_one_row(reader: RowReader) -> None:
    rows = sum(SIZES["el"])
    table = reader.read(slots([0] * rows, list(range(rows))))
    places = list(zip(table["shard"].to_pylist(), table["place"].to_pylist(), strict=True))
    assert sorted(places) == [(shard, place) for shard, size in enumerate(SIZES["el"]) for place in range(size)]


def test_a_block_of_the_order_is_one_row_group(reader: RowReader) -> None:
    """Shards seldom hold a multiple of a group's rows: numbered by place alone, most blocks would lie in two groups."""
    whole = sum(size // BLOCK for size in SIZES["el"])
    table = reader.read(slots([0] * whole * BLOCK, list(range(whole * BLOCK))))
    groups = list(zip(table["shard"].to_pylist(), (table["place"].to_numpy() // BLOCK).tolist(), strict=True))
    assert [len(set(groups[start : start + BLOCK])) for start in range(0, len(groups), BLOCK)] == [1] * whole


def test_a_number_after_the_last_row_is_an_error(reader: RowReader) -> None:
    with pytest.raises(LookupError):
        reader.read(slots([0], [sum(SIZES["el"])]))


def test_rows_come_in_the_order_of_the_slots(reader: RowReader) -> None:
    rng = np.random.default_rng(0)
    stream = rng.integers(0, 2, 200)
    row = np.where(stream == 0, rng.integers(0, sum(SIZES["el"]), 200), rng.integers(0, 10, 200))
    together = reader.read(slots(stream.tolist(), row.tolist()))
    for at in range(0, 200, 17):
        alone = reader.read(slots([int(stream[at])], [int(row[at])]))
        assert [alone[name][0] for name in ("shard", "place")] == [together[name][at] for name in ("shard", "place")]
