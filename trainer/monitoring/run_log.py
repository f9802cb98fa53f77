"""The log of a run: one JSON object a line, a file an attempt, written by the first rank.

It is written step by step, so that it has steps that no checkpoint holds. If attempts overlap, the later one counts. An object
store cannot append: every few seconds the new lines become a new object, and many of these are merged to one, named after them,
so that a log of a week is read in seconds.
"""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.retries import retry

FOLDER = "log"
"""Below a run's folder."""
_PUT_SECONDS = 10.0
OBJECTS_PER_MERGE = 256
"""Objects that one merged object replaces."""
_AT_ONCE = 16
"""Objects that are read in parallel."""
_OURS = re.compile(r"\d{20}-\d{6}(-\d{6})?\.jsonl")
"""Names of our files: a stamp, and the number of the object, or the first and last number of merged ones."""
DEATH_FIELDS = ("next_step", "step", "micro")
"""The fields that `deaths` needs."""
_ENDED = ("driver", "stopped", "finished", "error", "preempted")
"""Kinds of entries of attempts that did not die in a step."""


class RunLog:
    """The log of this attempt."""

    def __init__(self, uri: str) -> None:
        """`uri`: the folder of all attempts' logs. Writes nothing yet."""
        self._uri, self._stamp = uri, f"{_next_stamp(uri):020d}"
        self._local, self._parts, self._put = storage.is_local(uri), 0, time.monotonic()
        self._lines: list[str] = []
        self._unmerged: list[bytes] = []
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="log")

    def write(self, kind: str, **entry: Any) -> None:
        """Writes an entry. If that fails, as on a full disk, the entry is written with the next one."""
        self._lines.append(json.dumps({"kind": kind, "time": round(time.time(), 3), **entry}))
        if self._local or time.monotonic() - self._put > _PUT_SECONDS:
            self._write_waiting(sync=False)

    def sync(self) -> None:
        """Flushes the entries, so that they survive the machine."""
        self._write_waiting(sync=True)

    def _write_waiting(self, sync: bool) -> None:
        """Writes the waiting entries to the file or as a new object; keeps them for the next time if storage fails."""
        content = "".join(line + "\n" for line in self._lines).encode()
        with contextlib.suppress(OSError):
            if self._local:
                self._append(content, sync)
            elif content:
                storage.write_bytes(self._part(), content)
                self._parts, self._put = self._parts + 1, time.monotonic()
                self._merge(content)
            self._lines = []

    def _merge(self, content: bytes) -> None:
        """Merges the last objects once there are `OBJECTS_PER_MERGE` of them, in a thread.

        Writes the new object, then removes those it replaces. After a kill in between, `read` ignores those.
        """
        self._unmerged.append(content)
        if len(self._unmerged) < OBJECTS_PER_MERGE:
            return
        whole, numbers = b"".join(self._unmerged), range(self._parts - OBJECTS_PER_MERGE, self._parts)
        self._unmerged = []

        def merge() -> None:
            with contextlib.suppress(OSError):
                storage.write_bytes(self._name(f"{numbers[0]:06d}-{numbers[-1]:06d}"), whole)
                for number in numbers:
                    storage.remove(self._name(f"{number:06d}"))

        self._behind.submit(merge)

    def _append(self, content: bytes, sync: bool) -> None:
        """Appends the content to the local file whole or not at all; on an error restores the file and raises OSError."""
        path = storage.filesystem(self._part())[1]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                if not before:  # an empty file would count as an attempt
                    os.unlink(path)
                raise

    def _part(self) -> str:
        return self._name(f"{self._parts:06d}")

    def _name(self, numbers: str) -> str:
        return storage.join(self._uri, f"{self._stamp}-{numbers}.jsonl")


def _next_stamp(uri: str) -> int:
    """A time stamp after those of all attempts in a folder, whose machines may have other clocks."""
    with contextlib.suppress(OSError):
        return max([time.time_ns(), *(int(path.partition("-")[0]) + 1 for path in _files(uri))])
    return time.time_ns()


def _files(uri: str) -> list[str]:
    """The files of the log; other files in the folder are ignored."""
    return [path for path in storage.files(uri) if _OURS.fullmatch(path)]


def read(uri: str, last: int | None = None, fields: Collection[str] | None = None) -> list[list[dict[str, Any]]]:
    """The entries of each attempt, or of the `last` ones, the earliest first. Ignores a line that a kill cut short.

    Args:
        fields: those to keep beside `kind` and `time`; all if None. A step of many languages has 11 KB.
    """
    try:
        return _read(uri, last, fields)
    except FileNotFoundError:  # merged after it was listed
        return _read(uri, last, fields)


def _read(uri: str, last: int | None, fields: Collection[str] | None) -> list[list[dict[str, Any]]]:
    """The entries of each attempt in one try; FileNotFoundError if a file was merged after it was listed."""
    files = _files(uri)
    stamps = sorted({path.partition("-")[0] for path in files})
    attempts: dict[str, list[dict[str, Any]]] = {stamp: [] for stamp in (stamps if last is None else stamps[-last:])}
    paths = [path for path in _not_merged(files) if path.partition("-")[0] in attempts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = pool.map(lambda path: _entries(storage.join(uri, path), fields), paths)
        for path, entries in zip(paths, contents, strict=True):
            attempts[path.partition("-")[0]] += entries
    return [entries for entries in attempts.values() if entries]


def _not_merged(files: list[str]) -> list[str]:
    """The files without those that a merged file replaces."""
    parts = {path: path.removesuffix(".jsonl").split("-") for path in files}
    merged = [numbers for numbers in parts.values() if len(numbers) == 3]
    replaced = {f"{stamp}-{number:06d}.jsonl" for stamp, first, last in merged for number in range(int(first), int(last) + 1)}
    return [path for path in files if path not in replaced]


def _entries(uri: str, fields: Collection[str] | None) -> list[dict[str, Any]]:
    """The entries of a file. One on a disk may have gigabytes and is read line by line; objects of a store are small."""
    if storage.is_local(uri):
        return retry(lambda: _local_entries(storage.filesystem(uri)[1], fields))
    return _parse_entries(storage.read_bytes(uri).splitlines(), fields)


def _local_entries(path: str, fields: Collection[str] | None) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        return _parse_entries(file, fields)


def _parse_entries(lines: Iterable[bytes], fields: Collection[str] | None) -> list[dict[str, Any]]:
    """The entries of JSON lines, cut down to `fields` if given; skips lines that are not JSON."""
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            kept = entry if fields is None else {name: entry[name] for name in ("kind", "time", *fields) if name in entry}
            entries.append(kept)
    return entries


def steps(attempts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The entries of all steps in order; of a repeated step the last."""
    found = {entry["step"]: entry for entries in attempts for entry in entries if entry["kind"] == "step"}
    return [found[step] for step in sorted(found)]


def deaths(attempts: list[list[dict[str, Any]]]) -> dict[str, int]:
    """How many of the last attempts in a row died in the same step with the same micro-batch, and that step.

    `count` and `step`.
    """
    count, last, micro = 0, None, None
    for entries in reversed(attempts):
        died, rows = _death_step(entries), next((entry.get("micro") for entry in entries if entry["kind"] == "start"), None)
        if died is None or last not in (None, died) or (count and micro != rows):
            break
        count, last, micro = count + 1, died, rows
    return {"count": count, "step": last or 0}


def _death_step(entries: list[dict[str, Any]]) -> int | None:
    """The step in which an attempt died; None if it did not die in a step."""
    at = None
    for entry in entries:
        if entry["kind"] in _ENDED:
            return None
        if entry["kind"] in ("start", "back"):
            at = entry["next_step"]
        elif entry["kind"] == "step":
            at = entry["step"] + 1
    return at
