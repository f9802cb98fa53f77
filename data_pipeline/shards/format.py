"""The file format of shards: Parquet with a fixed number of rows a row group; equal rows give equal bytes.

Token ids are stored as fixed-size binary (little-endian uint16 or uint32), so that a row group becomes one NumPy array
without a copy per row.
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
"""Rows of a row group: the unit of reading and of checksums, and a block of the order."""
_CHECKSUMS = "scion.checksums"
_FIX = "Remove it and run `scion shard` again: it builds only the missing files."


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
        CorruptError: the file is missing or damaged.
        OSError: the storage failed; the file may be intact.
    """
    try:
        return _read_patiently(uri, groups)
    except PERMANENT_ERRORS as error:
        raise CorruptError(f"cannot be read ({reason(error)}).", uri, _FIX) from error


def _read_groups(uri: str, groups: list[int] | None) -> pa.Table:
    """The rows of some row groups, or of all, in one attempt; CorruptError if a checksum differs or parsing fails."""
    fs, path = storage.filesystem(uri)
    try:
        with fs.open(path) as file:
            parquet = pq.ParquetFile(file)
            checksums = parquet.metadata.metadata[_CHECKSUMS.encode()].decode().split(",")
            wanted = range(parquet.num_row_groups) if groups is None else groups
            parts = {number: parquet.read_row_group(number) for number in wanted}
            changed = [number for number, part in parts.items() if checksum(part, number) != checksums[number]]
            whole = pa.concat_tables([parts[number] for number in wanted]) if parts else parquet.schema_arrow.empty_table()
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise  # the storage's error: Arrow's own OSErrors, for bytes that it cannot parse, have no error number
        raise CorruptError(f"cannot be read ({reason(error)}).", uri, _FIX) from error
    if changed:
        raise CorruptError(f"row group {changed[0]} is not what was written.", uri, _FIX)
    return whole.replace_schema_metadata(None)


_read_patiently = with_retries(_read_groups, lambda uri, groups: storage.download_seconds(uri))


def checksum(rows: pa.Table, number: int) -> str:
    """A hash of the values of row group `number`, independent of Arrow's layout.

    Includes the number: equal rows of another group have another checksum.
    """
    digest = hashlib.blake2b(f"{number}:{len(rows)}".encode(), digest_size=8)
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        digest.update(name.encode())
        _update_digest(digest, column.combine_chunks())
    return digest.hexdigest()


def _update_digest(digest: Any, values: pa.Array) -> None:
    """Adds a column's values, lengths and nulls to the running hash `digest`; nested lists are included."""
    if isinstance(values, pa.ChunkedArray):  # `combine_chunks` of no chunk
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    digest.update(np.asarray(values.is_valid()).tobytes())
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).tobytes())
        _update_digest(digest, values.flatten())
    elif pa.types.is_string(kind):
        digest.update(pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False).tobytes())
        digest.update("".join(pc.fill_null(values, "").to_pylist()).encode())
    elif pa.types.is_fixed_size_binary(kind):
        start = values.offset * kind.byte_width
        digest.update(memoryview(values.buffers()[1])[start : start + len(values) * kind.byte_width])
    elif pa.types.is_boolean(kind):
        digest.update(pc.fill_null(values, False).to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(pc.fill_null(values, 0).to_numpy(zero_copy_only=False).tobytes())
