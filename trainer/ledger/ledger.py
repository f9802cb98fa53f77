"""Records the rows that each rank was trained on; `scion verify RUN` checks the order by them.

A segment holds the rows between two checkpoints and has the name of the second. Each rank writes its part of a segment before
that checkpoint counts. The checkpoints say which segments are the run's history (`RunState.lineage`).
"""

import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.errors import CorruptError, reason
from data_pipeline.feed.reader import SLOT_COLUMNS

FOLDER = "ledger"
"""Below a run's folder."""
PLAN, HISTORY = "plan.json", "history.json"
"""In a ledger: the order of the run, and, once it has ended, the segments of its history."""
SCHEMA = pa.schema(
    {"step": pa.int64(), "slot": pa.int32(), "stream": pa.int16(), "epoch": pa.int32(), "row": pa.int64(), "crc": pa.uint32()}
)
"""`step` and `slot` are those of the order; `crc` is the CRC-32 of the row's content."""


class Ledger:
    """The rows of one rank since the last segment. Rows of weight 0 are left out: they are not trained on."""

    def __init__(self, uri: str, rank: int) -> None:
        self._uri, self._rank = uri, rank
        self._since: list[pa.Table] = []

    def note(self, rows: pa.Table) -> None:
        """Adds rows as the feed gives them."""
        real = rows.filter(rows["weight"].to_numpy() > 0)
        noted = [pa.array(crcs(real)) if name == "crc" else real[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names]
        self._since.append(pa.Table.from_arrays(noted, schema=SCHEMA))

    def take(self) -> list[pa.Table]:
        """Takes the rows for a segment; later rows belong to the next."""
        taken, self._since = self._since, []
        return taken

    def give_back(self, rows: list[pa.Table]) -> None:
        """Takes rows back whose segment does not count; they belong to the next."""
        self._since = rows + self._since

    def write(self, segment: str, rows: list[pa.Table]) -> None:
        """Writes this rank's part of a segment."""
        buffer = io.BytesIO()
        pq.write_table(pa.concat_tables([SCHEMA.empty_table(), *rows]), buffer, compression="zstd")
        storage.write_bytes(storage.join(self._uri, segment, f"rank-{self._rank:05d}.parquet"), buffer.getvalue())

    def finish(self, history: dict[str, Any]) -> None:
        """Writes which segments are the history of a finished run; until then its checkpoints say it."""
        storage.write_bytes(storage.join(self._uri, HISTORY), json.dumps(history).encode())

    def drop(self, segment: str) -> None:
        storage.remove(storage.join(self._uri, segment))


def segments(uri: str) -> list[str]:
    """Names of the existing segments, the earliest first."""
    return sorted({path.split("/")[0] for path in storage.files(uri) if path.endswith(".parquet")})


def parts(uri: str, segment: str) -> list[str]:
    """The files of a segment, one a rank; killed ranks may have left others."""
    folder = storage.join(uri, segment)
    return [storage.join(folder, path) for path in storage.files(folder) if path.endswith(".parquet")]


def read(uri: str, segment: str) -> pa.Table:
    """The rows of all ranks of a segment, by step and slot.

    Raises:
        CorruptError: a part cannot be read.
    """
    found = [SCHEMA.empty_table()]
    for path in parts(uri, segment):
        try:
            found.append(pq.read_table(io.BytesIO(storage.read_bytes(path))).cast(SCHEMA))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise CorruptError(f"cannot be read ({reason(error)}).", path) from error
    return pa.concat_tables(found).sort_by([("step", "ascending"), ("slot", "ascending")])


def crcs(rows: pa.Table) -> NDArray[np.uint32]:
    """CRC-32 of each row's content, uint32 [rows]."""
    own = [name for name in rows.column_names if name not in SLOT_COLUMNS]
    found = np.zeros(len(rows), np.uint32)
    for name in own:
        for place, content in enumerate(_bytes(rows[name])):
            found[place] = zlib.crc32(content, int(found[place]))
    return found


def _bytes(column: pa.ChunkedArray) -> Iterator[bytes]:
    if pa.types.is_fixed_size_binary(column.type):
        yield from column.to_pylist()
    else:
        yield from (repr(value).encode() for value in column.to_pylist())
