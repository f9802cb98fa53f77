"""Reads the rows of slots, in slot order. Shared by Ray Data's read tasks and the local feed."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.errors import CorruptError, DataOrderError
from data_pipeline.order.row_order import Slots
from data_pipeline.shards import format
from data_pipeline.shards.manifest import Manifest

SLOT_COLUMNS = ("step", "slot", "stream", "epoch", "row", "weight")
"""Columns that describe a slot, beside those of its row."""
NUMBERING_VERSION = 2
"""Changes when rows are numbered in another way: a run with another version cannot resume."""
_CONCURRENT_FILES = 8
"""Files that one process reads at the same time."""


class _RowLocator:
    """Locates the rows of a stream.

    Row numbers count the rows of all whole row groups first, then those of the shorter groups at the ends of shards. So a block
    of the order is one row group, however many rows a shard has.
    """

    def __init__(self, rows: list[int]) -> None:
        groups, rest = np.divmod(np.array(rows, np.int64), format.GROUP_ROWS)
        self._groups, self._rest = np.cumsum([0, *groups]), np.cumsum([0, *rest])

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard of each row, and its place in the shard."""
        group, place = np.divmod(numbers, format.GROUP_ROWS)
        rest = numbers - self._groups[-1] * format.GROUP_ROWS
        in_whole_group = rest < 0
        shard = np.where(in_whole_group, _last_start(self._groups, group), _last_start(self._rest, rest))
        groups_before = np.where(in_whole_group, group - self._groups[shard], np.diff(self._groups)[shard])
        return shard, groups_before * format.GROUP_ROWS + np.where(in_whole_group, place, rest - self._rest[shard])


def _last_start(starts: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the last of `starts` at or before each number."""
    return np.searchsorted(starts, numbers, side="right") - 1


class RowReader:
    """Reads rows of one manifest; `names[i]` is the order's stream number i."""

    def __init__(self, folder: str, manifest: Manifest, names: tuple[str, ...]) -> None:
        self._folder, self._manifest, self._names = folder, manifest, names
        self._locators = {name: _RowLocator([shard.rows for shard in manifest.streams[name]]) for name in names}

    def read(self, slots: Slots) -> pa.Table:
        """The rows of `slots`, with the slots' columns added. Reads each row group once."""
        return read_located(self._folder, self.locate(slots))

    def locate(self, slots: Slots) -> pa.Table:
        """The slots' columns, and the location of each row: `path` below the folder and `place` in that file.

        This is all that `read_located` needs; it names only the files that hold these rows.
        """
        shard, place = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        for number, name in enumerate(self._names):
            here = slots.stream == number
            shard[here], place[here] = self._locators[name].locate(np.asarray(slots.row, np.int64)[here])
        files, code = np.unique(np.stack([slots.stream, shard]), axis=1, return_inverse=True)
        paths = [self._manifest.streams[self._names[stream]][number].path for stream, number in files.T.tolist()]
        path = pa.DictionaryArray.from_arrays(pa.array(code.reshape(-1).astype(np.int32)), pa.array(paths, pa.string()))
        return pa.table({tag: pa.array(getattr(slots, tag)) for tag in SLOT_COLUMNS} | {"path": path, "place": pa.array(place)})


def read_located(folder: str, table: pa.Table) -> pa.Table:
    """Reads the rows that `RowReader.locate` located, with the slots' columns added. Reads each row group once.

    Raises:
        CorruptError: a file is missing or damaged.
        OSError: a file could not be read.
    """
    path = table["path"].combine_chunks()
    paths, code, place = path.dictionary.to_pylist(), path.indices.to_numpy(), table["place"].to_numpy()
    order = np.lexsort((place, code))
    edges = np.flatnonzero(np.diff(code[order])) + 1
    files = [(storage.join(folder, paths[code[members[0]]]), place[members]) for members in np.split(order, edges)]
    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        parts = list(pool.map(lambda file: _read_places(*file), files))
    rows = pa.concat_tables(parts).take(pa.array(np.argsort(order))).combine_chunks()
    for tag in SLOT_COLUMNS:
        rows = rows.append_column(tag, table[tag].combine_chunks())
    return rows


def _read_places(path: str, places: NDArray[np.int64]) -> pa.Table:
    """The rows at ascending places of a shard. Opens the file once."""
    groups, which = np.unique(places // format.GROUP_ROWS, return_inverse=True)
    rows = format.read_groups(path, groups.tolist())
    inside = which * format.GROUP_ROWS + places % format.GROUP_ROWS  # only a file's last group may be shorter
    if inside.max() >= len(rows):
        raise CorruptError("holds fewer rows than the manifest says.", path, "Build the shards again.")
    return rows.take(pa.array(inside))


def split_by_step(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Cuts blocks of rows where the step changes. Yields the step and its rows."""
    for block in blocks:
        steps = block["step"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
        for start, end in itertools.pairwise(edges):
            if start < end:
                yield int(steps[start]), block.slice(start, end - start)


def check_received(expected: Slots, table: pa.Table, rank: int) -> None:
    """Refuses rows other than those that the order has here.

    This proves that no row was lost, duplicated or moved in transit. That a row's content is the shard's is proved by the
    checksum of its row group, when it is read.

    Raises:
        DataOrderError: names the slot, the expected value and the received one.
    """
    for name in ("step", "slot", "stream", "row"):
        received = table[name].to_numpy()
        wanted = getattr(expected, name)
        if len(received) != len(wanted) or (received != wanted).any():
            at = int(np.argmax(received != wanted)) if len(received) == len(wanted) else min(len(received), len(wanted))
            raise DataOrderError(
                f"rank {rank} received {name} {received[at] if at < len(received) else 'nothing'} where the order has "
                f"{wanted[at] if at < len(wanted) else 'nothing'}.",
                f"step {int(expected.step[0])}, place {at}",
                "The shards on disk are not those of the manifest, or the feed is broken.",
            )
