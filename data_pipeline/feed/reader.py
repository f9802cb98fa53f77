"""Planned slots in, their rows out, in slot order: what Ray Data's readers and the local feed have in common."""

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


NUMBERING_VERSION = 2
"""Changes when a row gets another number: a run that began with another cannot go on."""
_AT_ONCE = 8
"""Files that one process reads at the same time."""


class _Rows:
    """Where the rows of a stream lie: its numbers count first the rows of all whole row groups, then those of the shorter
    groups at the ends of shards. So a block of the order is one row group, however many rows a shard has."""

    def __init__(self, rows: list[int]) -> None:
        groups, rest = np.divmod(np.array(rows, np.int64), format.GROUP_ROWS)
        self._groups, self._rest = np.cumsum([0, *groups]), np.cumsum([0, *rest])

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard of each row, and its place there."""
        group, place = np.divmod(numbers, format.GROUP_ROWS)
        ending = numbers - self._groups[-1] * format.GROUP_ROWS
        whole = ending < 0
        shard = np.where(whole, _last(self._groups, group), _last(self._rest, ending))
        before = np.where(whole, group - self._groups[shard], np.diff(self._groups)[shard])
        return shard, before * format.GROUP_ROWS + np.where(whole, place, ending - self._rest[shard])


def _last(starts: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last of `starts` at or before each number."""
    return np.searchsorted(starts, numbers, side="right") - 1


class RowReader:
    """Rows of the streams of one manifest, named as in the plan (`names[i]` is stream number i)."""

    def __init__(self, folder: str, manifest: Manifest, names: tuple[str, ...]) -> None:
        self._folder, self._manifest, self._names = folder, manifest, names
        self._rows = {name: _Rows([shard.rows for shard in manifest.streams[name]]) for name in names}

    def read(self, slots: Slots) -> pa.Table:
        """The rows of `slots` with the slots' own columns beside them, each row group read once."""
        return read_located(self._folder, self.locate(slots))

    def locate(self, slots: Slots) -> pa.Table:
        """The slots' columns, and where each row lies: `path` below the folder and `place` in that file. It is all that
        `read_located` needs, and names only the files that hold these rows."""
        shard, place = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        for number, name in enumerate(self._names):
            here = slots.stream == number
            shard[here], place[here] = self._rows[name].places(np.asarray(slots.row, np.int64)[here])
        files, code = np.unique(np.stack([slots.stream, shard]), axis=1, return_inverse=True)
        paths = [self._manifest.streams[self._names[stream]][number].path for stream, number in files.T.tolist()]
        where = pa.DictionaryArray.from_arrays(pa.array(code.reshape(-1).astype(np.int32)), pa.array(paths, pa.string()))
        return pa.table(
            {tag: pa.array(getattr(slots, tag)) for tag in SLOT_COLUMNS} | {"path": where, "place": pa.array(place)}
        )


def read_located(folder: str, table: pa.Table) -> pa.Table:
    """The rows that `RowReader.locate` found, with the slots' columns beside them, each row group read once.

    Raises:
        CorruptError: a file is missing or not what was written.
        OSError: a file could not be read.
    """
    where = table["path"].combine_chunks()
    paths, code, place = where.dictionary.to_pylist(), where.indices.to_numpy(), table["place"].to_numpy()
    order = np.lexsort((place, code))
    edges = np.flatnonzero(np.diff(code[order])) + 1
    files = [(storage.join(folder, paths[code[one[0]]]), place[one]) for one in np.split(order, edges)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(lambda one: _read_places(*one), files))
    rows = pa.concat_tables(parts).take(pa.array(np.argsort(order))).combine_chunks()
    for tag in SLOT_COLUMNS:
        rows = rows.append_column(tag, table[tag].combine_chunks())
    return rows


def _read_places(path: str, places: NDArray[np.int64]) -> pa.Table:
    """The rows at some places of a shard, in ascending order: the file is opened once."""
    groups, which = np.unique(places // format.GROUP_ROWS, return_inverse=True)
    found = format.read_groups(path, groups.tolist())
    inside = which * format.GROUP_ROWS + places % format.GROUP_ROWS  # only a file's last group may be shorter
    if inside.max() >= len(found):
        raise CorruptError("holds fewer rows than the manifest says.", path, "Build the shards again.")
    return found.take(pa.array(inside))


def split_by_step(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Blocks of rows cut where the step changes: the step and its rows."""
    for block in blocks:
        steps = block["step"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
        for start, end in itertools.pairwise(edges):
            if start < end:
                yield int(steps[start]), block.slice(start, end - start)


def check_received(expected: Slots, table: pa.Table, rank: int) -> None:
    """Refuses rows that the plan does not have at this place. This proves that no row was lost, doubled or moved on its way.
    The checksum of its row group proves, when it is read, that a row's content is the shard's.

    Raises:
        DataOrderError: names the slot, what was planned and what came.
    """
    for tag in ("step", "slot", "stream", "row"):
        received = table[tag].to_numpy()
        planned = getattr(expected, tag)
        if len(received) != len(planned) or (received != planned).any():
            at = int(np.argmax(received != planned)) if len(received) == len(planned) else min(len(received), len(planned))
            raise DataOrderError(
                f"rank {rank} received {tag} {received[at] if at < len(received) else 'nothing'} where the plan has "
                f"{planned[at] if at < len(planned) else 'nothing'}.",
                f"step {int(expected.step[0])}, place {at}",
                "The shards on disk are not those of the manifest, or the feed is broken.",
            )
