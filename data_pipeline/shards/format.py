"""The files of a row stream: Parquet, a fixed number of rows a row group, the same bytes for the same rows.

Token ids are stored as fixed-size binary (little-endian uint16 or uint32), so that a whole row group becomes one NumPy
array without a copy per row.
"""

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.retries import PERMANENT_ERRORS, with_retries
from data_pipeline.errors import CorruptError, reason
from data_pipeline.order.row_order import BLOCK
from data_pipeline.shards.pack import PackedRows

GROUP_ROWS = BLOCK
"""Rows of a row group: the unit of reading, and of checking what was read; the order keeps it together."""
_CHECKSUMS = "scion.checksums"
_MEND = "Remove it and run `scion shard` again: only what is missing is built."


def text_rows(packed: PackedRows, vocab_size: int) -> pa.Table:
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
    """Writes the file whole or not at all and returns its SHA-256. Its footer holds a checksum of each row group."""
    parts = range(0, len(table), group_rows)
    sums = ",".join(checksum(table.slice(start, group_rows), number) for number, start in enumerate(parts))
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", store_schema=False, write_statistics=False) as writer:
        writer.write_table(table, row_group_size=group_rows)
        writer.add_key_value_metadata({_CHECKSUMS: sums})
    content = buffer.getvalue()
    storage.write_bytes(uri, content)
    return hashlib.sha256(content).hexdigest()


def read_groups(uri: str, groups: list[int] | None = None) -> pa.Table:
    """The rows of some row groups, in the order given, or of all.

    Raises:
        CorruptError: the file is missing or not what was written.
        OSError: it could not be read, which says nothing against it.
    """
    try:
        return _read_patiently(uri, groups)
    except PERMANENT_ERRORS as error:
        raise CorruptError(f"cannot be read ({reason(error)}).", uri, _MEND) from error


def _read_groups(uri: str, groups: list[int] | None) -> pa.Table:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path) as file:
            parquet = pq.ParquetFile(file)
            known = parquet.metadata.metadata[_CHECKSUMS.encode()].decode().split(",")
            wanted = range(parquet.num_row_groups) if groups is None else groups
            parts = {number: parquet.read_row_group(number) for number in wanted}
            changed = [number for number, part in parts.items() if checksum(part, number) != known[number]]
            whole = pa.concat_tables([parts[number] for number in wanted]) if parts else parquet.schema_arrow.empty_table()
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise  # of the storage: what Arrow says of bytes that it does not understand is an OSError without a number
        raise CorruptError(f"cannot be read ({reason(error)}).", uri, _MEND) from error
    if changed:
        raise CorruptError(f"row group {changed[0]} is not what was written.", uri, _MEND)
    return whole.replace_schema_metadata(None)


_read_patiently = with_retries(_read_groups, lambda uri, groups: storage.download_seconds(uri))


def checksum(rows: pa.Table, number: int) -> str:
    """A hash of what the rows of group `number` say, whatever Arrow's layout of them is; another group's has another."""
    digest = hashlib.blake2b(f"{number}:{len(rows)}".encode(), digest_size=8)
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        digest.update(name.encode())
        _update(digest, column.combine_chunks())
    return digest.hexdigest()


def _update(digest: Any, values: pa.Array) -> None:
    if isinstance(values, pa.ChunkedArray):  # `combine_chunks` of no chunk
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    digest.update(np.asarray(values.is_valid()).tobytes())
    kind = values.type
    if pa.types.is_list(kind):
        digest.update(pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).tobytes())
        _update(digest, values.flatten())
    elif pa.types.is_string(kind):
        digest.update(pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False).tobytes())
        digest.update("".join(pc.fill_null(values, "").to_pylist()).encode())
    elif pa.types.is_fixed_size_binary(kind):
        start = values.offset * kind.byte_width
        digest.update(memoryview(values.buffers()[1])[start : start + len(values) * kind.byte_width])
    else:
        digest.update(pc.fill_null(values, 0).to_numpy(zero_copy_only=False).tobytes())
