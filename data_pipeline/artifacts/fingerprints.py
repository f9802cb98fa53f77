"""Fingerprints of files: equal content, equal fingerprint, without reading the content where the storage knows a checksum."""

import hashlib
import os
import time
from collections import Counter
from contextlib import suppress
from typing import Any, BinaryIO

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.retries import request_clock, with_retries

_CHECKSUM_FIELDS = ("ETag", "etag", "md5Hash")
"""Fields of an object store's listing that identify the content."""
_LISTING_PAYS_FROM = 16
"""From this many files of a folder on, one listing is quicker than one request each, whatever else the folder holds."""
SETTLE_SECONDS = 2.0
"""After this time without a change, another change gets another timestamp on any file system."""
_fingerprints: dict[tuple[int, ...], str] = {}
"""Cache of this process, keyed by `_state`."""


def _sha256(uri: str) -> str:
    """SHA-256 of a file's content."""
    fs, path = storage.filesystem(uri)
    digest, progress = hashlib.sha256(), request_clock()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            progress.restart()
    return digest.hexdigest()


sha256 = with_retries(_sha256, storage.download_seconds)


@with_retries
def fingerprint(uri: str) -> str:
    """Changes when the file's content changes: a SHA-256 for a local file, the store's own checksum elsewhere.

    A process reads a local file again only if its inode changed.
    """
    fs, path = storage.filesystem(uri)
    if not storage.is_local(uri):
        return _checksum(storage.info(fs, path))
    with open(path, "rb") as file:
        state = _state(file)
        if state not in _fingerprints:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if state != _state(file) or time.time() - max(state[-2:]) / 1e9 < SETTLE_SECONDS:
                return digest
            _fingerprints[state] = digest
    return _fingerprints[state]


def fingerprints(uris: list[str]) -> list[str]:
    """The fingerprint of each file. A folder of many files on an object store costs one request, not one a file."""
    listed: dict[str, str] = {}
    folders = Counter(uri.rpartition("/")[0] for uri in uris if not storage.is_local(uri))
    for folder in sorted(folder for folder, count in folders.items() if count >= _LISTING_PAYS_FROM):
        fs, path = storage.filesystem(folder)
        with suppress(OSError):  # no such folder, or listing is not allowed: each file is requested by itself
            listed |= {fs.unstrip_protocol(entry["name"]): _checksum(entry) for entry in storage.entries(fs, path)}
    return [listed.get(uri) or fingerprint(uri) for uri in uris]


def _checksum(entry: dict[str, Any]) -> str:
    """Hash of the size and the store's checksum of a file; of all fields but the name where the store has no checksum."""
    checksum = next((entry[name] for name in _CHECKSUM_FIELDS if entry.get(name)), None)
    others = sorted((name, str(value)) for name, value in entry.items() if name != "name")
    identity = (entry.get("size"), checksum) if checksum else others
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What a write to an open local file changes. A program can set the modification time back, but not the change time."""
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def folder_fingerprint(uri: str) -> str:
    """Changes when a file below the folder changes, is added or is removed."""
    digest, names = hashlib.sha256(), storage.files(uri)
    for name, content in zip(names, fingerprints([storage.join(uri, name) for name in names]), strict=True):
        digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()
