"""What tells a file's content from another without a look at it, where the storage knows."""

import hashlib
import os
import time
from collections import Counter
from contextlib import suppress
from typing import Any, BinaryIO

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.retries import with_retries

_MARKS = ("ETag", "etag", "md5Hash")
"""Where the listings of object stores say what identifies the content."""
_MANY = 16
"""Files of a folder from which on one listing is quicker than a request each, whatever else is in the folder."""
SETTLE_SECONDS = 2.0
"""Seconds since the last change of a file after which another change gets another time, whatever the file system's clock."""
_fingerprints: dict[tuple[int, ...], str] = {}
"""Of this process, by `_state`."""


@with_retries
def fingerprint(uri: str) -> str:
    """Changes when the file's content changes: a SHA-256 for a local file, the store's own checksum elsewhere.

    A process reads a local file once, unless its inode says that it was changed since.
    """
    fs, path = storage.filesystem(uri)
    if not storage.is_local(uri):
        return _mark(storage.info(fs, path))
    with open(path, "rb") as file:
        state = _state(file)
        if state not in _fingerprints:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if state != _state(file) or time.time() - max(state[-2:]) / 1e9 < SETTLE_SECONDS:
                return digest
            _fingerprints[state] = digest
    return _fingerprints[state]


def fingerprints(uris: list[str]) -> list[str]:
    """That of each file. An object store is asked once a folder, not once a file, where many are in one."""
    known: dict[str, str] = {}
    folders = Counter(uri.rpartition("/")[0] for uri in uris if not storage.is_local(uri))
    for folder in sorted(folder for folder, count in folders.items() if count >= _MANY):
        fs, path = storage.filesystem(folder)
        with suppress(OSError):  # there is no such folder, or it may not be listed: the files are asked one by one
            known |= {fs.unstrip_protocol(entry["name"]): _mark(entry) for entry in storage.entries(fs, path)}
    return [known.get(uri) or fingerprint(uri) for uri in uris]


def _mark(entry: dict[str, Any]) -> str:
    """Of what an object store says about a file: its own mark of the content, or all but the name."""
    mark = next((entry[name] for name in _MARKS if entry.get(name)), None)
    said = (entry.get("size"), mark) if mark else sorted((name, str(said)) for name, said in entry.items() if name != "name")
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What a write to an open local file changes. A program can set the time of writing back, but not that of the change."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def folder_fingerprint(uri: str) -> str:
    """Changes when a file below the folder changes, comes or goes."""
    digest, names = hashlib.sha256(), storage.files(uri)
    for name, found in zip(names, fingerprints([storage.join(uri, name) for name in names]), strict=True):
        digest.update(f"{name}\0{found}\0".encode())
    return digest.hexdigest()
