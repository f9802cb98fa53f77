"""Planned slots in, their rows out, in slot order: what Ray Data's readers and the local feed have in common."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline import storage
from data_pipeline.errors import CorruptError, DataOrderError
from data_pipeline.order.plan import Slots
from data_pipeline.shards import format
from data_pipeline.shards.manifest import Manifest

TAGS = ("step", "slot", "stream", "epoch", "row", "weight")


class RowReader:
    """Rows of the streams of one manifest, named as in the plan (`names[i]` is stream number i)."""

    def __init__(self, folder: str, manifest: Manifest, names: tuple[str, ...]) -> None:
        self._folder, self._manifest, self._names = folder, manifest, names
        self._starts = {name: np.cumsum([0, *(shard.rows for shard in manifest.streams[name])]) for name in names}

    def read(self, slots: Slots) -> pa.Table:
        """The rows of `slots` with the slots' own columns beside them, each row group read once."""
        shard, row = np.empty(len(slots), np.int64), np.asarray(slots.row, np.int64).copy()
        for number, name in enumerate(self._names):
            here = slots.stream == number
            shard[here] = np.searchsorted(self._starts[name], row[here], side="right") - 1
            row[here] -= self._starts[name][shard[here]]
        order = np.lexsort((row, shard, slots.stream))
        files = np.stack([slots.stream, shard])[:, order]
        edges = np.flatnonzero((files[:, 1:] != files[:, :-1]).any(axis=0)) + 1
        parts = [self._of_file(int(slots.stream[one[0]]), int(shard[one[0]]), row[one]) for one in np.split(order, edges)]
        table = pa.concat_tables(parts).take(pa.array(np.argsort(order))).combine_chunks()
        for tag in TAGS:
            table = table.append_column(tag, pa.array(getattr(slots, tag)))
        return table

    def _of_file(self, stream: int, shard: int, rows: NDArray[np.int64]) -> pa.Table:
        """Some rows of a shard, in ascending order: the file is opened once."""
        path = storage.join(self._folder, self._manifest.streams[self._names[stream]][shard].path)
        groups, which = np.unique(rows // format.GROUP_ROWS, return_inverse=True)
        found = format.read_groups(path, groups.tolist())
        places = which * format.GROUP_ROWS + rows % format.GROUP_ROWS  # only a file's last group may be shorter
        if places.max() >= len(found):
            raise CorruptError("holds fewer rows than the manifest says.", path, "Build the shards again.")
        return found.take(pa.array(places))


def by_step(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
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
