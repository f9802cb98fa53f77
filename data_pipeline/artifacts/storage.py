"""Files and folders at any URI that fsspec knows (a local path, s3://, gs://, memory://).

Writes are atomic: on a local disk by rename, on an object store because a PUT is. All errors of storage are OSErrors, and
storage that does not answer never counts as empty. Every function is idempotent and retries errors that may pass.
"""

import errno
import glob
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

_MIN_BYTES_PER_SECOND = 4 << 20
"""Slowest transfer to expect where the storage does not report progress."""
LATE_SECONDS = 1800.0
"""Time-out of a request that must be answered before the next step is safe."""
_DRAFT = re.compile(r"\.[0-9a-f]{12}\.draft$")
_CONCURRENT_FILES = 8
"""Files that are downloaded, uploaded or removed at the same time."""
_MOUNT_FOLDER = "lost+found"
"""Folder that belongs to the file system at a mount point."""


def absolute(uri: str) -> str:
    """A local path made absolute, so that a worker with another working directory finds it; other URIs unchanged."""
    try:
        return os.path.abspath(filesystem(uri)[1]) if is_local(uri) else uri
    except ConfigError:  # unknown protocol: reported when the URI is read or written
        return uri


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def is_file(uri: str) -> bool:
    """Whether `uri` is a file, not a folder.

    Raises:
        OSError: the storage did not answer.
    """
    return _patient_kind(*filesystem(uri)) == "file"


@with_retries
def exists(uri: str) -> bool:
    """Whether `uri` is a file or a folder.

    Raises:
        OSError: the storage did not answer; fsspec's own `exists` returns False then.
    """
    return _kind(*filesystem(uri)) is not None


def info(fs: Any, path: str) -> dict[str, Any]:
    """The storage's current entry for a file or folder. Without this, s3fs and others answer from a cached listing."""
    for folder in (path, fs._parent(path)):
        fs.invalidate_cache(folder)
    return dict(fs.info(path))


def _kind(fs: Any, path: str) -> str | None:
    """`file` or `directory`; None if neither exists."""
    try:
        return str(info(fs, path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


_patient_kind = with_retries(_kind)


def files(uri: str) -> list[str]:
    """Every file below the folder `uri`, as sorted paths relative to it; empty if there is no such folder.

    Leaves out drafts of writes that were killed.

    Raises:
        OSError: the folder could not be listed.
    """
    fs, path = filesystem(uri)
    if _patient_kind(fs, path) != "directory":
        return []
    root = path.rstrip("/") + "/"
    paths = retry(lambda: list(_walk(path))) if is_local(uri) else _below(fs, path)
    return sorted(file[len(root) :] for file in paths if not _DRAFT.search(file))


def _walk(path: str) -> Iterator[str]:
    """Every file below a local folder. fsspec's `find` would skip folders that it fails to list."""

    def handle(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | PermissionError):  # removed since, or not ours
            raise error

    for folder, _, names in os.walk(path, onerror=handle, followlinks=True):
        yield from (os.path.join(folder, name) for name in names)


def _below(fs: Any, path: str, depth: int = 1 << 10) -> Iterator[str]:
    """As `_walk`, of an object store, at most `depth` levels down."""
    for entry in entries(fs, path):
        if entry["type"] == "file":
            yield str(entry["name"])
        elif depth > 1 and entry["name"].rstrip("/") != path.rstrip("/"):
            yield from _below(fs, entry["name"], depth - 1)


def _entries(fs: Any, path: str) -> list[dict[str, Any]]:
    """An object store's current entry for each file and folder directly in a folder."""
    fs.invalidate_cache(path)
    return list(fs.ls(path, detail=True))


entries = with_retries(_entries, lambda fs, path: MANY_FILES_SECONDS)


def expand(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted; a folder names every file directly in it.

    Raises:
        OSError: the storage did not answer.
    """
    fs, path = filesystem(pattern)
    if is_local(pattern):
        return sorted(os.path.abspath(match) for match in _local_matches(path) if os.path.isfile(match))
    kind = _patient_kind(fs, path)
    if kind == "file":
        return [pattern]
    if kind == "directory":
        return sorted(map(fs.unstrip_protocol, _below(fs, path, 1)))
    if not glob.has_magic(path):
        return []
    fixed = path[: min(path.index(mark) for mark in "*?[" if mark in path)].rpartition("/")[0]
    depth = 1 << 10 if "**" in path else path.count("/") - fixed.count("/")
    matches = re.compile(glob_translate(path)).match
    try:
        return sorted(fs.unstrip_protocol(name) for name in _below(fs, fixed, depth) if matches(name))
    except FileNotFoundError:
        return []


def _local_matches(path: str) -> list[str]:
    """A file or folder of that exact name wins over the matches of a glob; brackets in the working folder are literal."""
    working_folder = os.getcwd() + os.sep
    if os.path.isdir(path):
        return [os.path.join(path, name) for name in os.listdir(path) if not name.startswith(".")]
    if os.path.isfile(path):
        return [path]
    if path.startswith(working_folder):
        path = glob.escape(working_folder) + path[len(working_folder) :]
    return glob.glob(path, recursive=True)


@with_retries
def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def write_once(uri: str, content: bytes) -> None:
    """Writes the whole file or nothing, without retries."""
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


write_bytes = with_retries(write_once, lambda uri, content: len(content) / _MIN_BYTES_PER_SECOND)


def sync(uri: str) -> None:
    """Flushes the content and the names of all files below a local folder to disk, whatever wrote them.

    Objects of a store are durable once written. Skips links, pipes and files that others remove meanwhile.
    """
    if not is_local(uri):
        return
    for folder, _, names in os.walk(filesystem(uri)[1]):
        paths = [os.path.join(folder, name) for name in names]
        for path in (*(path for path in paths if os.path.isfile(path) and not os.path.islink(path)), folder):
            with suppress(FileNotFoundError):
                _fsync(path)


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(uri: str, seconds: float = 30.0) -> None:
    """Checks that a file can be written below the folder `uri`.

    Raises:
        OSError: it cannot, or storage did not answer in `seconds`.
        ConfigError: the protocol is unknown, or its package is missing.
    """
    call_with_timeout(lambda: _probe(join(uri, f".probe-{secrets.token_hex(6)}")), seconds)


@as_os_error()
def _probe(uri: str) -> None:
    """Without retries: a mistake in the settings is reported at once."""
    write_once(uri, b"")
    _remove(uri)


def _remove(uri: str) -> None:
    """Removes a file, or a folder with its content, if it exists."""
    fs, path = filesystem(uri)
    if (kind := _kind(fs, path)) is None:
        return
    if is_local(uri) or not glob.has_magic(path):
        fs.rm(path, recursive=True)
        return
    for name in [path] if kind == "file" else list(_below(fs, path)):  # fsspec would read the name as a pattern
        fs.rm_file(name)


remove = with_retries(_remove, lambda uri: MANY_FILES_SECONDS)
"""Use `clear` where the same name is written again afterwards."""


def clear(uri: str, last: str) -> None:
    """Removes a folder and its content, so that it can be filled again; its file `last` goes when all else is gone.

    Waits for every answer of an object store: an unanswered request could still remove a file that is written later.

    Raises:
        OSError: the folder cannot be removed.
    """
    mark = join(uri, last)
    if is_local(uri):
        path = filesystem(uri)[1]
        for name in os.listdir(path) if os.path.isdir(path) else []:
            if name not in (last, _MOUNT_FOLDER):
                remove(join(uri, name))
        remove(mark)
        # A link to another disk and a mount point belong to the user.
        if os.path.isdir(path) and not os.path.islink(path) and not os.path.ismount(path):
            os.rmdir(path)
        return
    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        list(pool.map(_remove_and_wait, [join(uri, name) for name in files(uri) if name != last]))
    _remove_and_wait(mark)


def _remove_and_wait(uri: str) -> None:
    """Removes a file of an object store, if it exists, and waits for the answer."""
    fs, path = filesystem(uri)

    @as_os_error()
    def request() -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    retry(lambda: call_with_timeout(request, LATE_SECONDS, AmbiguousTimeout))


@with_retries
def download_seconds(uri: str) -> float:
    """Longest time that the download of a file should take; 0 if the store does not report its size."""
    fs, path = filesystem(uri)
    return int(info(fs, path).get("size") or 0) / _MIN_BYTES_PER_SECOND


@contextmanager
def local_copy(uri: str, wanted: Callable[[str], bool] | None = None) -> Iterator[str]:
    """A local folder with the content of the folder `uri`; the folder itself if it is local.

    Args:
        wanted: whether to download a file, given its path below `uri`; all by default.
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
        FileNotFoundError: `names` is empty.
    """
    if not names:
        raise FileNotFoundError(errno.ENOENT, "no such files", uri)
    for parent in {os.path.dirname(os.path.join(folder, name)) for name in names}:
        os.makedirs(parent, exist_ok=True)
    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        list(pool.map(lambda name: _get_file(join(uri, name), os.path.join(folder, name)), names))


class _Progress(Callback):
    """Restarts the request's clock when fsspec reports progress, so that a slow transfer does not time out."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = request_clock()

    def relative_update(self, inc: int = 1) -> None:
        self._clock.restart()

    def absolute_update(self, value: int) -> None:
        self._clock.restart()


def _get(uri: str, local: str) -> None:
    fs, path = filesystem(uri)
    fs.get_file(path, local, callback=_Progress())


def _put(uri: str, local: str) -> None:
    """Copies a local file to an object store, whole or not at all."""
    fs, path = filesystem(uri)
    fs.put_file(local, path, callback=_Progress())


_get_file = with_retries(_get, lambda uri, local: download_seconds(uri))
put_file = with_retries(_put, lambda uri, local: os.path.getsize(local) / _MIN_BYTES_PER_SECOND)


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A local file with the content and the name of the file `uri`; the file itself if it is local."""
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
    """A local folder whose files are uploaded to `uri` if the block ends without an error."""
    if is_local(uri):
        os.makedirs(path := filesystem(uri)[1], exist_ok=True)
        yield path
        _open_to_readers(path)
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        yield folder
        with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
            list(pool.map(lambda name: put_file(join(uri, name), os.path.join(folder, name)), files(folder)))


def _open_to_readers(folder: str) -> None:
    """Gives the folder's weights the permissions of other new files: safetensors writes them for their owner alone."""
    for name in files(folder):
        if name.endswith(".safetensors"):
            path = os.path.join(folder, name)
            with suppress(PermissionError):  # another user wrote it
                os.chmod(path, os.stat(path).st_mode | os.stat(os.path.dirname(path)).st_mode & 0o666)
