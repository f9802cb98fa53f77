"""Planned slots in, their rows out, in slot order: what Ray Data's readers and the local feed have in common."""

import bisect
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

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
        self._starts = {name: np.cumsum([0, *(shard.rows for shard in manifest.streams[name])]).tolist() for name in names}

    def read(self, slots: Slots) -> pa.Table:
        """The rows of `slots` with the slots' own columns beside them, each row group read once."""
        wanted: dict[tuple[int, int, int], list[int]] = {}
        for place in range(len(slots)):
            stream, row = int(slots.stream[place]), int(slots.row[place])
            shard = bisect.bisect_right(self._starts[self._names[stream]], row) - 1
            inside = row - self._starts[self._names[stream]][shard]
            wanted.setdefault((stream, shard, inside // format.GROUP_ROWS), []).append(place)
        parts, places = [], []
        for (stream, shard, group), members in sorted(wanted.items()):
            name = self._names[stream]
            first = self._starts[name][shard] + group * format.GROUP_ROWS
            path = storage.join(self._folder, self._manifest.streams[name][shard].path)
            rows, wanted_rows = format.read_groups(path, [group]), [int(slots.row[place]) - first for place in members]
            if max(wanted_rows) >= len(rows):
                raise CorruptError("holds fewer rows than the manifest says.", path, "Build the shards again.")
            parts.append(rows.take(pa.array(wanted_rows)))
            places.extend(members)
        table = pa.concat_tables(parts).take(pa.array(np.argsort(places))).combine_chunks()
        for tag in TAGS:
            table = table.append_column(tag, pa.array(getattr(slots, tag)))
        return table


def by_step(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Blocks of rows cut where the step changes: the step and its rows."""
    for block in blocks:
        steps = block["step"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
        for start, end in itertools.pairwise(edges):
            if start < end:
                yield int(steps[start]), block.slice(start, end - start)


def check_received(expected: Slots, table: pa.Table, rank: int) -> None:
    """Refuses rows that the plan does not have at this place.

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
