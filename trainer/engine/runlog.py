"""The log of a run: one JSON object a line, a file an attempt, written by the first rank.

It is written step by step, so that it tells of steps that no checkpoint holds. Where attempts overlap, the later one counts.
On an object store, which cannot append, lines are put there every few seconds, each time as a new object.
"""

import contextlib
import errno
import json
import os
import time
from typing import Any

from data_pipeline import storage

FOLDER = "log"
"""Below a run's folder."""
_PUT_SECONDS = 10.0
_ENDED = ("driver", "stopped", "finished", "error", "preempted")
"""Entries of attempts that did not die of a step."""


class RunLog:
    """The log of this attempt."""

    def __init__(self, uri: str) -> None:
        """`uri` is the folder of all attempts; nothing is written yet."""
        self._uri, self._stamp = uri, f"{time.time_ns():020d}"
        self._local, self._parts, self._put = storage.is_local(uri), 0, time.monotonic()
        self._lines: list[str] = []

    def write(self, kind: str, **entry: Any) -> None:
        """An entry; `kind` says which. Where it cannot be written, as on a full disk, it waits for the next one."""
        self._lines.append(json.dumps({"kind": kind, "time": round(time.time(), 3), **entry}))
        if self._local or time.monotonic() - self._put > _PUT_SECONDS:
            self._out(sync=False)

    def sync(self) -> None:
        """What could be written survives the machine when this returns."""
        self._out(sync=True)

    def _out(self, sync: bool) -> None:
        content = "".join(line + "\n" for line in self._lines).encode()
        with contextlib.suppress(OSError):
            if self._local:
                self._append(content, sync)
            elif content:
                storage.write_bytes(self._part(), content)
                self._parts, self._put = self._parts + 1, time.monotonic()
            self._lines = []

    def _append(self, content: bytes, sync: bool) -> None:
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
                raise

    def _part(self) -> str:
        return storage.join(self._uri, f"{self._stamp}-{self._parts:06d}.jsonl")


def read(uri: str, last: int | None = None) -> list[list[dict[str, Any]]]:
    """The entries of each attempt, or of the `last` ones, the earliest first. A line that a kill cut short is left out."""
    files = storage.files(uri)
    stamps = sorted({path.partition("-")[0] for path in files})
    attempts: dict[str, list[dict[str, Any]]] = {stamp: [] for stamp in (stamps if last is None else stamps[-last:])}
    for path in files:
        entries = attempts.get(path.partition("-")[0])
        if entries is None:
            continue
        for line in storage.read_bytes(storage.join(uri, path)).decode(errors="replace").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
    return list(attempts.values())


def steps(attempts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The entries of all steps in order, of those that came several times the last."""
    found = {entry["step"]: entry for entries in attempts for entry in entries if entry["kind"] == "step"}
    return [found[step] for step in sorted(found)]


def deaths(attempts: list[list[dict[str, Any]]]) -> dict[str, int]:
    """How many of the last attempts died in the same step, one after the other, as `count`, and in which, as `step`."""
    count, last = 0, None
    for entries in reversed(attempts):
        died = _died(entries)
        if died is None or last not in (None, died):
            break
        count, last = count + 1, died
    return {"count": count, "step": last or 0}


def _died(entries: list[dict[str, Any]]) -> int | None:
    """The step that an attempt was at when it died; None if it did not die of a step."""
    at = None
    for entry in entries:
        if entry["kind"] in _ENDED:
            return None
        if entry["kind"] in ("start", "back"):
            at = entry["next_step"]
        elif entry["kind"] == "step":
            at = entry["step"] + 1
    return at
