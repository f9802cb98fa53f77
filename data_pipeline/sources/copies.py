"""Copies inputs that cannot be cut into units, compressed files and datasets, to files that can."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.artifacts import storage
from data_pipeline.errors import DataError, reason

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
"""Endings of compressed files, with pyarrow's names of their compression."""
BATCH_ROWS = 1000
"""Rows of a dataset that are in memory at once."""
_CHUNK = 8 << 20


def decompress(path: str, target: str, *, key: str) -> str:
    """Streams the content of the compressed file `path` to `target`, and returns `target`.

    Raises:
        DataError: the compression is not that of its ending, or the file is truncated.
    """
    codec = CODECS[os.path.splitext(path)[1].lower()]
    with storage.local_file(path) as local:
        _decompress(local, codec, target, f"{key}={path}")
    return target


def _decompress(path: str, codec: str, target: str, where: str) -> None:
    """Streams the content of the compressed file `path` to `target`; DataError if it is damaged or of another codec."""
    try:
        with open(path, "rb") as raw, _open_for_writing(target) as file:
            content = pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)
            shutil.copyfileobj(content, file, _CHUNK)
    except OSError as error:
        if error.errno is not None:  # an error of the disk, not of pyarrow
            raise
        raise DataError(f"cannot be decompressed ({reason(error)}).", where, "Compress the file again.") from error


def write_dataset(spec: str, target: str, *, key: str) -> str:
    """Streams the rows of a dataset of the `datasets` library to the Parquet file `target`, and returns `target`.

    Args:
        spec: `NAME`, `NAME:CONFIG` or `NAME:CONFIG:SPLIT`; NAME may be `NAME@REVISION`.

    Raises:
        DataError: there is no such dataset, or it has no rows.
    """
    import datasets  # takes a second to import, and most runs read files

    repository, config, split = [*spec.split(":"), None, None][:3]
    name, _, revision = str(repository).partition("@")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", revision=revision or None, streaming=True)
        tables = rows.with_format("arrow").iter(BATCH_ROWS)
        first = next(tables, None)
    except Exception as error:  # the library raises a dozen classes, from a missing folder to a refused connection
        raise DataError(
            f"neither a file nor a dataset that `datasets` can load ({reason(error)}).",
            f"{key}={spec}",
            "Give a .parquet, .jsonl or .txt path or glob, or NAME[@REVISION][:CONFIG[:SPLIT]] of a dataset.",
        ) from error
    if first is None:
        raise DataError("the dataset has no rows.", f"{key}={spec}", "Name another split.")
    with _open_for_writing(target) as file, pq.ParquetWriter(file, first.schema) as writer:
        for table in chain([first], _with_data_error(tables, key, spec)):
            writer.write_table(table.cast(first.schema))
    return target


def _with_data_error(tables: Iterator[pa.Table], key: str, spec: str) -> Iterator[pa.Table]:
    """Yields the tables unchanged; turns an error while they are read into a DataError that names the dataset."""
    try:
        yield from tables
    except Exception as error:
        advice = (
            f"name them, {key}='{spec}/*': then their other columns may differ" if os.path.isdir(spec) else "look at its files"
        )
        raise DataError(f"the dataset broke off ({reason(error)}).", f"{key}={spec}", f"Run it again, or {advice}.") from error


@contextmanager
def _open_for_writing(target: str) -> Iterator[Any]:
    fs, path = storage.filesystem(target)
    if storage.is_local(target):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    with fs.open(path, "wb") as file:
        yield file
