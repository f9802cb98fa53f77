"""Reads documents at a path, glob, URI or `datasets` name, cut into units that workers read independently.

A unit is a slice of one file: row groups of a Parquet file, or a byte range of a JSONL or plain-text file. The cuts depend
on the files alone, not on the number of workers. So everything built from a unit is the same for any number of workers.
"""

import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.artifacts import fingerprints, storage
from data_pipeline.artifacts.retries import MANY_FILES_SECONDS, request_clock, with_retries
from data_pipeline.errors import DataError, reason
from data_pipeline.sources import copies, json_values

PARQUET, JSONL, TEXT = (".parquet",), (".jsonl", ".json", ".ndjson"), (".txt", ".text")
KINDS = PARQUET + JSONL + TEXT
UNIT_BYTES = 8 << 20
"""Size on disk of a unit; a row group of Parquet is never cut."""
MAX_READ, MIN_READ = 32 << 20, 1 << 16
"""Most and fewest bytes of one request to the storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Row groups [start, stop) of a Parquet file or bytes [start, stop) of a line file; `number` counts all units."""

    number: int
    path: str
    name: str
    """The path below the common folder of all files of the source."""
    start: int
    stop: int


def resolve(spec: str, cache: str, *, key: str) -> list[str]:
    """The files that `spec` names, ready to be cut.

    Expands a path, glob or URI. Anything else is the name of a dataset for the `datasets` library, as `NAME`, `NAME:CONFIG`
    or `NAME:CONFIG:SPLIT`. Writes the rows of a dataset, and the content of compressed files, once below the folder or URI
    `cache`.

    Raises:
        DataError: no such file or dataset, or an unsupported kind of file.
    """
    paths = _source_files(spec, key)
    if not paths:
        return [copies.write_dataset(spec, storage.join(cache, f"{key}.parquet"), key=key)]
    return [_uncompressed(path, storage.join(cache, key, str(number)), key) for number, path in enumerate(paths)]


def check(spec: str, *, key: str) -> bool:
    """Refuses a path, glob or URI without readable files. Does not check that a dataset of that name exists.

    Returns:
        Whether it names files, not a dataset.

    Raises:
        DataError: no such file, or an unsupported kind of file.
    """
    return bool(_source_files(spec, key))


def fingerprint(spec: str, *, key: str) -> str:
    """Identifies the content of `spec`: the content of files, or the name of a dataset."""
    if paths := _source_files(spec, key):
        return " ".join(content[:16] for content in fingerprints.fingerprints(paths))
    return fingerprints.folder_fingerprint(spec)[:16] if os.path.isdir(spec) else f"datasets:{spec}"


def _source_files(spec: str, key: str) -> list[str]:
    """The files at a path, glob or URI, compressed or not; empty if `spec` names a dataset.

    Raises:
        DataError: no such file, or an unsupported kind of file.
    """
    looks_like_path = _kind(spec) in KINDS or has_magic(spec) or "://" in spec
    paths = storage.expand(spec) if looks_like_path or os.path.isfile(spec) else []
    unsupported = [path for path in paths if _kind(path) not in KINDS]
    if unsupported:
        endings = ", ".join(copies.CODECS)
        raise DataError(
            "not a Parquet, JSONL or text file.",
            f"{key}={unsupported[0]}",
            f"Use .parquet, .jsonl or .txt, the last two also with {endings}.",
        )
    if looks_like_path and not paths:
        raise DataError("no such file.", f"{key}={spec}", f"Check the path or glob (looked from {os.getcwd()}).")
    return paths


def _kind(path: str) -> str:
    """A file's ending, without that of its compression; empty for a compressed Parquet file, which is not supported."""
    inner, ending = os.path.splitext(path.lower())
    kind = os.path.splitext(inner)[1] if ending in copies.CODECS else ending
    return "" if ending in copies.CODECS and kind in PARQUET else kind


def _uncompressed(path: str, folder: str, key: str) -> str:
    """The file, or an uncompressed copy of it."""
    inner, ending = os.path.splitext(path)
    if ending.lower() not in copies.CODECS:
        return path
    return copies.decompress(path, storage.join(folder, os.path.basename(inner)), key=key)


def units(paths: list[str]) -> list[Unit]:
    """Cuts files into units of about `UNIT_BYTES`."""
    cuts: list[tuple[str, int, int]] = []
    for path in paths:
        cuts.extend((path, start, stop) for start, stop in _patiently_cut(path))
    prefix = len(_common_folder([path.split("/")[:-1] for path in paths]))
    return [Unit(number=i, path=path, name=path[prefix:], start=a, stop=b) for i, (path, a, b) in enumerate(cuts)]


def _common_folder(folders: list[list[str]]) -> str:
    """The common beginning of all paths. Not os.path.commonpath, which makes one slash of the two in s3://."""
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "".join(f"{parts[0]}/" for parts in common)


def columns(unit: Unit, *, key: str) -> list[str]:
    """The names of a unit's columns; those of all its lines if it is a JSONL file, empty if it has no lines.

    Raises:
        DataError: a line is not a JSON object.
    """
    return _patiently_named(unit.path, unit, key)


def read(
    unit: Unit,
    columns: tuple[str, ...],
    optional: tuple[str, ...],
    *,
    key: str,
    types: Mapping[str, pa.DataType] = MappingProxyType({}),
) -> pa.Table:
    """The records of a unit with `columns`, and those of `optional` that the file has.

    Args:
        types: of columns of JSONL files that mean something else here than their names mean elsewhere.

    Raises:
        DataError: a column is missing, a line is not JSON or has a value of the wrong type, or the bytes are not UTF-8; names
            file and line.
    """
    suffix = os.path.splitext(unit.path)[1].lower()
    table = _patiently_read(unit.path, unit, columns, optional, key, types)
    missing = [name for name in columns if name not in table.column_names]
    if missing and (len(table) or suffix in PARQUET + TEXT):
        raise DataError(
            f"column {', '.join(missing)} is missing; the file has {', '.join(table.column_names) or 'none'}.",
            f"{key}={unit.path}",
            f"{key} needs the columns {', '.join(columns)}.",
        )
    return table.select([name for name in columns + optional if name in table.column_names])


def _read(
    path: str, unit: Unit, columns: tuple[str, ...], optional: tuple[str, ...], key: str, types: Mapping[str, pa.DataType]
) -> pa.Table:
    """The records of a unit of the file at `path`, with those of the columns that it has."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in PARQUET:
        return _read_parquet(unit, columns, optional, key)
    if suffix in JSONL:
        return _read_jsonl(unit, dict.fromkeys(columns + optional) | dict(types), key)
    return pa.table({"text": pa.array([_decode(unit, at, line, key) for at, line in _lines(unit)], pa.string())})


def _columns(path: str, unit: Unit, key: str) -> list[str]:
    """The names of the columns of a unit of the file at `path`."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in PARQUET:
        with _open(path) as file:
            return list(pq.ParquetFile(file).schema_arrow.names)
    if suffix in JSONL:
        return list(dict.fromkeys(name for at, line in _lines(unit) for name in _parse_json_line(unit, at, line, key)))
    return ["text"]


_patiently_named = with_retries(_columns, lambda *arguments: MANY_FILES_SECONDS)
_patiently_read = with_retries(_read, lambda *arguments: MANY_FILES_SECONDS)


def row_id(unit: Unit, row: int) -> str:
    """The id of a record without one: its place in the files, so that it is stable between runs."""
    return f"{unit.name}:{unit.start}:{row}"


def _cut(path: str) -> list[tuple[int, int]]:
    """The start and stop of each unit of a file."""
    fs, inner = storage.filesystem(path)
    if os.path.splitext(path)[1].lower() not in PARQUET:
        size = storage.info(fs, inner)["size"]
        if size is None:  # a web server need not report it
            return [(0, 1 << 62)]
        return [(start, min(start + UNIT_BYTES, size)) for start in range(0, size, UNIT_BYTES)]
    try:
        with _open(path) as file:
            meta = pq.ParquetFile(file).metadata
    except pa.ArrowInvalid as error:
        raise DataError(f"not a readable Parquet file ({error}).", path, "Write it again.") from error
    units, start, size = [], 0, 0
    for group in range(meta.num_row_groups):
        size += meta.row_group(group).total_byte_size
        if size >= UNIT_BYTES or group == meta.num_row_groups - 1:
            units.append((start, group + 1))
            start, size = group + 1, 0
    return units


_patiently_cut = with_retries(_cut)


def _read_parquet(unit: Unit, columns: tuple[str, ...], optional: tuple[str, ...], key: str) -> pa.Table:
    """The unit's row groups, with those of the columns that the file has; no rows at all if one of `columns` is missing."""
    with _open(unit.path) as file:
        parquet = pq.ParquetFile(file)
        present = [name for name in columns + optional if name in parquet.schema_arrow.names]
        if not all(name in present for name in columns):
            return parquet.schema_arrow.empty_table()
        try:
            return parquet.read_row_groups(range(unit.start, unit.stop), columns=present)
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:  # an error of the storage, not of pyarrow
                raise
            raise DataError(f"damaged ({reason(error)}).", f"{key}={unit.path}", "Write it again.") from error


def _read_jsonl(unit: Unit, wanted: Mapping[str, pa.DataType | None], key: str) -> pa.Table:
    """The columns of all lines; null where a line lacks a value, and everywhere in columns that are not `wanted`.

    Args:
        wanted: columns and their types, None for the type that the name says.
    """
    rows = [(at, _parse_json_line(unit, at, line, key)) for at, line in _lines(unit)]
    names = dict.fromkeys(name for _, row in rows for name in row)
    columns = {}
    for name in names:
        kind = wanted.get(name) or json_values.arrow_type(name)
        values = [_value(unit, at, name, row.get(name), kind, key) if name in wanted else None for at, row in rows]
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def _value(unit: Unit, at: int, name: str, value: Any, kind: pa.DataType, key: str) -> Any:
    """A value of a line as its column stores it; DataError for another type."""
    try:
        return json_values.parse(name, value, kind)
    except ValueError as error:
        number = _line_number(unit, at)
        raise DataError(f"{name} in line {number} is {error}.", f"{key}={unit.path}", "Correct the line.") from error


def _lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the unit, with the byte at which each begins. Skips blank lines."""
    with _open(unit.path) as file:
        # A line belongs to the unit in which it begins: start one byte early and drop the rest of that line.
        file.seek(max(0, unit.start - 1))
        at = max(0, unit.start - 1) + (len(file.readline()) if unit.start else 0)
        while at < unit.stop:
            line = file.readline()
            if not line:
                return
            if line.strip():
                yield at, line.rstrip(b"\r\n")
            at += len(line)


@contextmanager
def _open(path: str) -> Iterator[io.BufferedReader]:
    """Opens a file, which may be remote and large. Reads do not time out while bytes arrive."""
    fs, inner = storage.filesystem(path)
    with fs.open(inner) as file:
        yield io.BufferedReader(ClockedReader(file), MIN_READ)


class ClockedReader(io.RawIOBase):
    """Reads another file in pieces, and restarts the request's clock after each piece."""

    def __init__(self, file: Any) -> None:
        self._file, self._clock = file, request_clock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read(min(len(buffer), MAX_READ))
        buffer[: len(piece)] = piece
        self._clock.restart()
        return len(piece)


def _parse_json_line(unit: Unit, at: int, line: bytes, key: str) -> dict[str, Any]:
    """A line parsed as a JSON object; DataError that names the file and the line if it is anything else."""
    if at == 0 and line.startswith(b"["):
        fix = "Write one object on each line, as pandas does with `to_json(orient='records', lines=True)`."
        raise DataError("it is a JSON array.", f"{key}={unit.path}", fix)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at its character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        what = f"line {_line_number(unit, at)} is not JSON that can be read ({why})."
        raise DataError(what, f"{key}={unit.path}", "Correct the line.") from error
    if not isinstance(row, dict):
        raise DataError(f"line {_line_number(unit, at)} is not a JSON object.", f"{key}={unit.path}", "Correct the line.")
    return row


def _decode(unit: Unit, at: int, line: bytes, key: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"line {_line_number(unit, at)} is not UTF-8.", f"{key}={unit.path}", "Convert the file.") from error


def _line_number(unit: Unit, at: int) -> int:
    """The number of the line that begins at a byte, counted from 1; for errors, since it reads the file up to there."""
    count = 1
    with _open(unit.path) as file:
        while at > 0 and (piece := file.read(min(at, MAX_READ))):
            count += piece.count(b"\n")
            at -= len(piece)
    return count
