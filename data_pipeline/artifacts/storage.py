"""Files and folders at any URI that fsspec knows (a local path, s3://, gs://, memory://).

A write is atomic: on a local disk by rename, on an object store because one PUT is. Whatever the storage raises is an OSError,
and storage that does not answer is never taken for storage where nothing is. Every function asks again where it fails for a
moment: what each does can be done twice.
"""

import errno
import glob
import hashlib
import os
import posixpath
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec import Callback
from fsspec.utils import glob_translate

from data_pipeline.artifacts.retries import (
    MANY_FILES_SECONDS,
    AmbiguousTimeout,
    as_os_error,
    call_with_timeout,
    request_clock,
    retry,
    with_retries,
)
from data_pipeline.artifacts.retries import filesystem as filesystem
from data_pipeline.artifacts.retries import is_local as is_local
from data_pipeline.errors import ConfigError

_SLOWEST = 4 << 20
"""Bytes of a file that come or go in a second at least, where the storage does not say how far it is."""
_LATE_SECONDS = 1800.0
"""How long an answer is waited for without which the next step would not be safe."""
_DRAFT = re.compile(r"\.[0-9a-f]{12}\.draft$")
_TOGETHER = 8
"""Files that are fetched or put at the same time."""
_OF_A_DISK = "lost+found"
"""The file system's own folder, where a disk is mounted."""


def absolute(uri: str) -> str:
    """A local path made absolute, so that a worker with another working directory finds it; other URIs unchanged."""
    try:
        return os.path.abspath(filesystem(uri)[1]) if is_local(uri) else uri
    except ConfigError:  # of a kind that is not known here: whoever reads or writes it will say so
        return uri


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def is_file(uri: str) -> bool:
    """Whether a file, not a folder, is there.

    Raises:
        OSError: the storage did not say.
    """
    return _kind_there(*filesystem(uri)) == "file"


@with_retries
def exists(uri: str) -> bool:
    """Whether a file or a folder is there.

    Raises:
        OSError: the storage did not say; `exists` of fsspec answers no to that.
    """
    return _kind(*filesystem(uri)) is not None


def info(fs: Any, path: str) -> dict[str, Any]:
    """What the storage says of a file or folder now; s3fs and its like answer from the last listing of the folder above."""
    for listed in (path, fs._parent(path)):
        fs.invalidate_cache(listed)
    return dict(fs.info(path))


def _kind(fs: Any, path: str) -> str | None:
    """`file` or `directory`; None where nothing is."""
    try:
        return str(info(fs, path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


_kind_there = with_retries(_kind)


def files(uri: str) -> list[str]:
    """Every file below the folder `uri`, as sorted paths relative to it; empty when there is no such folder. What a kill left
    of a write is no file.

    Raises:
        OSError: it could not be listed.
    """
    fs, path = filesystem(uri)
    if _kind_there(fs, path) != "directory":
        return []
    root = path.rstrip("/") + "/"
    found = retry(lambda: list(_walk(path))) if is_local(uri) else _below(fs, path)
    return sorted(one[len(root) :] for one in found if not _DRAFT.search(one))


def _walk(path: str) -> Iterator[str]:
    """Every file below a local folder. fsspec's `find` leaves out folders that it fails to list."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | PermissionError):  # gone in between, or none of ours
            raise error

    for folder, _, names in os.walk(path, onerror=failed, followlinks=True):
        yield from (os.path.join(folder, name) for name in names)


def _below(fs: Any, path: str, deep: int = 1 << 10) -> Iterator[str]:
    """Every file below a folder of an object store, at most `deep` folders down. fsspec's `find` leaves out folders that it
    fails to list."""
    for entry in entries(fs, path):
        if entry["type"] == "file":
            yield str(entry["name"])
        elif deep > 1 and entry["name"].rstrip("/") != path.rstrip("/"):
            yield from _below(fs, entry["name"], deep - 1)


def _entries(fs: Any, path: str) -> list[dict[str, Any]]:
    """What an object store says about each file and folder directly in a folder, as it is now."""
    fs.invalidate_cache(path)
    return list(fs.ls(path, detail=True))


entries = with_retries(_entries, lambda fs, path: MANY_FILES_SECONDS)


def expand(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted; a folder names every file directly in it.

    Raises:
        OSError: the storage did not say.
    """
    fs, path = filesystem(pattern)
    if is_local(pattern):
        return sorted(os.path.abspath(one) for one in _local_matches(path) if os.path.isfile(one))
    kind = _kind_there(fs, path)
    if kind == "file":
        return [pattern]
    if kind == "directory":
        return sorted(map(fs.unstrip_protocol, _below(fs, path, 1)))
    if not glob.has_magic(path):
        return []
    fixed = path[: min(path.index(mark) for mark in "*?[" if mark in path)].rpartition("/")[0]
    deep = 1 << 10 if "**" in path else path.count("/") - fixed.count("/")
    matches = re.compile(glob_translate(path)).match
    try:
        return sorted(fs.unstrip_protocol(name) for name in _below(fs, fixed, deep) if matches(name))
    except FileNotFoundError:
        return []


def _local_matches(path: str) -> list[str]:
    """What is there by that name goes before what it matches as a glob; brackets of the working folder are no pattern."""
    here = os.getcwd() + os.sep
    if os.path.isdir(path):
        return [os.path.join(path, name) for name in os.listdir(path) if not name.startswith(".")]
    if os.path.isfile(path):
        return [path]
    pattern = glob.escape(here) + path[len(here) :] if path.startswith(here) else path
    return glob.glob(pattern, recursive=True)


@with_retries
def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def _write(uri: str, content: bytes) -> None:
    """Writes the whole file or nothing."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, content)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    draft = f"{path}.{secrets.token_hex(6)}.draft"
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


write_bytes = with_retries(_write, lambda uri, content: len(content) / _SLOWEST)


def sync(uri: str) -> None:
    """Returns when the content and the names of all files below a local folder are on the disk, whatever wrote them. Objects of
    a store are safe once they are there. Links and pipes of others are passed over, and what others remove meanwhile."""
    if not is_local(uri):
        return
    for folder, _, names in os.walk(filesystem(uri)[1]):
        paths = [os.path.join(folder, name) for name in names]
        for path in (*(path for path in paths if os.path.isfile(path) and not os.path.islink(path)), folder):
            with suppress(FileNotFoundError):
                _sync(path)


def _sync(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def check_writable(uri: str, seconds: float = 30.0) -> None:
    """Whether a file can be written below the folder `uri`.

    Raises:
        OSError: it cannot, or storage did not answer in `seconds`.
        ConfigError: it is of a kind that is not known here, or whose package is missing.
    """
    call_with_timeout(lambda: _probe(join(uri, f".probe-{secrets.token_hex(6)}")), seconds)


@as_os_error()
def _probe(uri: str) -> None:
    """Once: a mistake in the settings is to be known at once."""
    _write(uri, b"")
    _remove(uri)


def _remove(uri: str) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    fs, path = filesystem(uri)
    if (kind := _kind(fs, path)) is None:
        return
    if is_local(uri) or not glob.has_magic(path):
        fs.rm(path, recursive=True)
        return
    for name in [path] if kind == "file" else list(_below(fs, path)):  # fsspec would take the name for a pattern
        fs.rm_file(name)


remove = with_retries(_remove, lambda uri: MANY_FILES_SECONDS)
"""Where a name is written again afterwards, `clear` is what to use."""


def clear(uri: str, last: str) -> None:
    """Removes a folder with all that is in it, so that it can be filled again: `last`, a file in it, when all else is gone.

    A request that an object store has not answered is waited for, since it might yet remove what comes after it.

    Raises:
        OSError: it cannot be removed.
    """
    mark = join(uri, last)
    if is_local(uri):
        path = filesystem(uri)[1]
        for name in os.listdir(path) if os.path.isdir(path) else []:
            if name not in (last, _OF_A_DISK):
                remove(join(uri, name))
        remove(mark)
        # A link to another disk is the user's, and so is the place where one is mounted.
        if os.path.isdir(path) and not os.path.islink(path) and not os.path.ismount(path):
            os.rmdir(path)
        return
    with ThreadPoolExecutor(_TOGETHER) as pool:
        list(pool.map(_remove_surely, [join(uri, name) for name in files(uri) if name != last]))
    _remove_surely(mark)


def _remove_surely(uri: str) -> None:
    """Removes a file of an object store, if it is there."""
    fs, path = filesystem(uri)

    @as_os_error()
    def ask() -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    retry(lambda: call_with_timeout(ask, _LATE_SECONDS, AmbiguousTimeout))


@with_retries
def download_seconds(uri: str) -> float:
    """What a file of an object store may take to come from there; 0 where the store does not say how large it is."""
    fs, path = filesystem(uri)
    return int(info(fs, path).get("size") or 0) / _SLOWEST


def _sha256(uri: str) -> str:
    """SHA-256 of a file's content, wherever it is."""
    fs, path = filesystem(uri)
    digest, moving = hashlib.sha256(), request_clock()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            moving.restart()
    return digest.hexdigest()


sha256 = with_retries(_sha256, download_seconds)


@contextmanager
def local_copy(uri: str, wanted: Callable[[str], bool] | None = None) -> Iterator[str]:
    """A local folder with the content of the folder `uri`; the folder itself when it is local.

    Args:
        wanted: whether a file, by its path below `uri`, is needed; the others are not fetched.
    """
    if is_local(uri):
        yield filesystem(uri)[1]
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        fetch(uri, [name for name in files(uri) if wanted is None or wanted(name)], folder)
        yield folder


def fetch(uri: str, names: list[str], folder: str) -> None:
    """Copies files below the folder `uri` to a local folder.

    Raises:
        FileNotFoundError: there are none.
    """
    if not names:
        raise FileNotFoundError(errno.ENOENT, "no such files", uri)
    for parent in {os.path.dirname(os.path.join(folder, name)) for name in names}:
        os.makedirs(parent, exist_ok=True)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        list(pool.map(lambda name: _get_file(join(uri, name), os.path.join(folder, name)), names))


class _Moving(Callback):
    """Restarts the clock of a request when fsspec says that bytes have come or gone: a slow line is not one that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = request_clock()

    def relative_update(self, inc: int = 1) -> None:
        self._clock.restart()

    def absolute_update(self, value: int) -> None:
        self._clock.restart()


def _get(uri: str, local: str) -> None:
    fs, path = filesystem(uri)
    fs.get_file(path, local, callback=_Moving())


def _put(uri: str, local: str) -> None:
    """Copies a local file to an object store, whole or not at all."""
    fs, path = filesystem(uri)
    fs.put_file(local, path, callback=_Moving())


_get_file = with_retries(_get, lambda uri, local: download_seconds(uri))
put_file = with_retries(_put, lambda uri, local: os.path.getsize(local) / _SLOWEST)


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A local file with the content and the name of the file `uri`; the file itself when it is local."""
    path = filesystem(uri)[1]
    if is_local(uri):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        copy = os.path.join(folder, os.path.basename(path))
        _get_file(uri, copy)
        yield copy


@contextmanager
def local_output(uri: str) -> Iterator[str]:
    """A local folder whose files are at `uri` when the block ends without an error."""
    if is_local(uri):
        os.makedirs(path := filesystem(uri)[1], exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        yield folder
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(lambda name: put_file(join(uri, name), os.path.join(folder, name)), files(folder)))
