"""The files of a row stream: Parquet, a fixed number of rows a row group, the same bytes for the same rows.

Token ids are stored as fixed-size binary (little-endian uint16 or uint32), so that a whole row group becomes one NumPy
array without a copy per row.
"""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline import storage
from data_pipeline.errors import CorruptError
from data_pipeline.shards.pack import Packed

GROUP_ROWS = 64
"""Rows of a row group: the unit of reading."""


def text_rows(packed: Packed, vocab_size: int) -> pa.Table:
    """Columns `input_ids` (fixed-size binary), `n_tokens`, `doc_starts`."""
    kind = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
    rows, length = packed.ids.shape
    width = pa.binary(length * kind.itemsize)
    ids = pa.FixedSizeBinaryArray.from_buffers(width, rows, [None, pa.py_buffer(packed.ids.astype(kind).tobytes())])
    starts = pa.array([part.tolist() for part in packed.doc_starts], pa.list_(pa.int32()))
    return pa.table({"input_ids": ids, "n_tokens": pa.array(packed.n_tokens), "doc_starts": starts})


def token_ids(column: pa.ChunkedArray, length: int) -> NDArray[np.int64]:
    """The `input_ids` column as int array [rows, length]."""
    flat = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    kind = np.dtype(f"<u{flat.type.byte_width // length}")
    data = np.frombuffer(flat.buffers()[1], kind, count=len(flat) * length, offset=flat.offset * flat.type.byte_width)
    return data.reshape(len(flat), length).astype(np.int64)


def write(uri: str, table: pa.Table, group_rows: int = GROUP_ROWS) -> str:
    """Writes the file whole or not at all and returns its SHA-256."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group_rows, compression="zstd", store_schema=False)
    content = buffer.getvalue()
    storage.write_bytes(uri, content)
    return hashlib.sha256(content).hexdigest()


def read_groups(uri: str, groups: list[int]) -> pa.Table:
    """The rows of some row groups, in the order given.

    Raises:
        CorruptError: the file is missing or not what was written.
    """
    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path) as file:
            return pq.ParquetFile(file, page_checksum_verification=True).read_row_groups(groups)
    except (OSError, pa.ArrowInvalid, IndexError) as error:
        raise CorruptError(f"cannot be read ({error}).", uri, "Build the shards again with `scion shard`.") from error
