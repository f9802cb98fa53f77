"""Checkpoints in storage: each is whole or does not count.

A checkpoint is a folder that is written once: its name holds the step, the number of workers and a stamp of the attempt, so
that files of two attempts never mix. Every rank writes its files and a manifest of their hashes; `COMMITTED` comes last and
holds the hashes of the manifests. A folder without it does not count. A folder that fails its hashes is marked `BAD`, and the
one before is taken. Older ones are removed only after a newer one is committed. A file that cannot be read has not failed its
hash.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from data_pipeline.artifacts import fingerprints, lease, storage
from data_pipeline.artifacts.artifact import READER_PREFIX
from data_pipeline.artifacts.lease import Lease
from data_pipeline.errors import CorruptError
from trainer.config.train import WINDOW
from trainer.ledger.step_name import DRAFT_PREFIX, is_name, step_of

COMMITTED, BAD, STATE = "COMMITTED", "BAD", "state.json"
WORKING = "checkpoints"
"""Below a run's folder, while it runs."""
_WINDOWS = 3
"""Windows of steps before that of the newest checkpoint; of each, one checkpoint is kept for a rollback."""
_CHANGED = "missing or changed since it was written."
_AT_ONCE = 8
"""Manifests that a commit reads in parallel."""
_ROOM = 1.2
"""Free bytes required per byte to write: files are somewhat larger than their tensors."""


@dataclass(frozen=True, slots=True)
class Store:
    """The checkpoints of a run, below `uri`."""

    uri: str
    keep: int
    lease: Lease | None = None
    """The run's lease: whoever lacks it must not commit."""

    def usable(self) -> list[str]:
        """Committed checkpoints without a `BAD` mark, the newest first.

        Raises:
            OSError: the storage does not answer.
        """
        there = storage.files(self.uri)
        marks = {mark: {path.split("/")[0] for path in there if path.endswith("/" + mark)} for mark in (COMMITTED, BAD)}
        found = [name for name in marks[COMMITTED] - marks[BAD] if is_name(name)]
        return sorted(found, key=lambda name: (step_of(name), name.rpartition("-")[2]), reverse=True)

    @contextmanager
    def part(self, name: str, rank: int) -> Iterator[str]:
        """A local folder for the files of one rank, which move into the checkpoint when the block ends without an error.

        It lies beside a local checkpoint, so that nothing is copied.
        """
        home = storage.filesystem(self.uri)[1] if storage.is_local(self.uri) else None
        if home is not None:
            os.makedirs(home, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{DRAFT_PREFIX}{rank:05d}-", dir=home) as folder:
            yield folder
            hashes = {path: _hash_and_sync(os.path.join(folder, path)) for path in storage.files(folder)}
            for path in hashes:
                self._move(os.path.join(folder, path), storage.join(name, path))
            self._write(name, _manifest(rank), hashes)

    def commit(self, name: str, world: int) -> None:
        """Makes the checkpoint count.

        Raises:
            CorruptError: the part of a rank is missing.
            OSError: the storage fails.
        """

        def part(rank: int) -> str:
            try:
                return hashlib.sha256(storage.read_bytes(storage.join(self.uri, name, _manifest(rank)))).hexdigest()
            except FileNotFoundError as error:
                raise CorruptError(f"the part of rank {rank} is missing.", storage.join(self.uri, name)) from error

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            hashes = dict(zip(map(_manifest, range(world)), pool.map(part, range(world)), strict=True))
        self._write(name, COMMITTED, hashes)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Protects a checkpoint from `prune`, by any process, while the block runs.

        Raises:
            OSError: the storage fails.
        """
        with lease.hold(storage.join(self.uri, f"{READER_PREFIX}{name}.{secrets.token_hex(4)}.json")):
            yield

    def _being_read(self) -> set[str]:
        """Checkpoints that some process reads. Removes the marks of dead processes; finding them takes time."""
        marks = [path for path in storage.files(self.uri) if path.startswith(READER_PREFIX)]
        with ThreadPoolExecutor(max(1, len(marks))) as pool:
            held = list(pool.map(lambda mark: lease.is_held(storage.join(self.uri, mark)), marks))
        for mark, alive in zip(marks, held, strict=True):
            if not alive:
                storage.remove(storage.join(self.uri, mark))
        return {mark.removeprefix(READER_PREFIX).partition(".")[0] for mark, alive in zip(marks, held, strict=True) if alive}

    def prune(self, name: str, reading: Collection[str] = ()) -> None:
        """Removes older checkpoints and uncommitted folders.

        Keeps `name`, the newest `keep`, those in `reading` or read by a process, and a few for rollbacks.

        Raises:
            OSError: something could not be removed; the next call tries again.
        """
        usable = self.usable()
        kept = {name, *reading, *self._being_read(), *usable[: self.keep], *rollback_targets(usable)}
        for other in {path.split("/")[0] for path in storage.files(self.uri)} - kept:
            if other.startswith(DRAFT_PREFIX) or (is_name(other) and step_of(other) <= step_of(name)):
                storage.remove(storage.join(self.uri, other))

    def keep_newest(self) -> None:
        """Removes all checkpoints of a finished run but the newest, and those that a process reads.

        Raises:
            OSError: the storage fails.
        """
        kept = {*self.usable()[:1], *self._being_read()}
        for other in {path.split("/")[0] for path in storage.files(self.uri)} - kept:
            if is_name(other) or other.startswith(DRAFT_PREFIX):
                storage.remove(storage.join(self.uri, other))

    def check_lease(self) -> None:
        """Checks that the run still holds its lease.

        Raises:
            ArtifactError: another has taken over.
        """
        if self.lease is not None:
            self.lease.check()

    def check_room(self, needed: int) -> None:
        """Checks that so many bytes fit on a local disk; an object store has no limit.

        Raises:
            OSError: they do not.
        """
        if storage.is_local(self.uri):
            home = storage.filesystem(self.uri)[1]
            os.makedirs(home, exist_ok=True)
            if shutil.disk_usage(home).free < needed * _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), home)

    def drop(self, name: str) -> None:
        storage.remove(storage.join(self.uri, name))

    def mark_bad(self, name: str, why: str) -> None:
        """Marks a checkpoint, so that it is not restored again.

        Raises:
            OSError: the storage fails.
        """
        self._write(name, BAD, {"why": why})

    def mark_abandoned(self, step: int) -> None:
        """Marks the checkpoints after `step`, before which the run has rolled back.

        Raises:
            OSError: the storage fails.
        """
        for name in self.usable():
            if step_of(name) > step:
                self.mark_bad(name, f"the run went back to step {step}")

    def verify(self, name: str, share: int = 0, of: int = 1) -> None:
        """Compares files with their hashes: all of them, or every `of`-th from number `share` on.

        Raises:
            CorruptError: names the file that is missing, or whose bytes were read and differ.
            OSError: a file could not be read; it may be intact.
        """
        hashes = dict(self._read(name, COMMITTED))
        files = dict(hashes)
        for manifest, known in hashes.items():
            self._check_hash(name, manifest, known)
            files |= self._read(name, manifest)
        for path in sorted(files)[share::of]:
            self._check_hash(name, path, files[path])

    def state(self, name: str) -> dict[str, Any]:
        """The run's state in a checkpoint, as it was written."""
        return dict(json.loads(storage.read_bytes(storage.join(self.uri, name, STATE))))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[str]:
        """A local folder with the checkpoint.

        Raises:
            OSError: the storage fails.
        """
        with storage.local_copy(storage.join(self.uri, name)) as folder:
            yield folder

    def _check_hash(self, name: str, path: str, expected: str) -> None:
        """Checks that a checkpoint's file has the SHA-256 `expected`; CorruptError if it differs or the file is missing."""
        uri = storage.join(self.uri, name, path)
        try:
            actual = fingerprints.sha256(uri)
        except FileNotFoundError as error:
            raise CorruptError(_CHANGED, uri) from error
        if actual != expected:
            raise CorruptError(_CHANGED, uri)

    def _move(self, local: str, path: str) -> None:
        uri = storage.join(self.uri, path)
        if storage.is_local(uri):
            os.makedirs(os.path.dirname(target := storage.filesystem(uri)[1]), exist_ok=True)
            shutil.move(local, target)
        else:
            storage.put_file(uri, local)

    def _write(self, name: str, path: str, content: dict[str, Any]) -> None:
        storage.write_bytes(storage.join(self.uri, name, path), json.dumps(content, indent=1, sort_keys=True).encode())

    def _read(self, name: str, path: str) -> dict[str, str]:
        uri = storage.join(self.uri, name, path)
        try:
            content = storage.read_bytes(uri)
            return {str(path): str(known) for path, known in json.loads(content).items()}
        except (FileNotFoundError, ValueError, AttributeError) as error:
            raise CorruptError(_CHANGED, uri) from error


def rollback_targets(usable: list[str]) -> list[str]:
    """The earliest checkpoint in each of the last windows of steps, the newest first.

    Each rollback in a row needs one that is a window older (`guards.rollback_step`).
    """
    earliest: dict[int, str] = {}
    for name in usable:
        window = step_of(name) // WINDOW
        if step_of(name) < step_of(earliest.setdefault(window, name)):
            earliest[window] = name
    return [name for window, name in earliest.items() if max(earliest) - window <= _WINDOWS]


def _manifest(rank: int) -> str:
    return f"manifest-{rank:05d}.json"


def _hash_and_sync(path: str) -> str:
    """SHA-256 of a file; flushes the file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
