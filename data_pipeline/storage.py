"""Files and folders at any URI that fsspec knows (a local path, s3://, gs://, memory://).

A write is atomic: on a local disk by rename, on an object store because one PUT is. Whatever the storage raises is an OSError,
and storage that does not answer is never taken for storage where nothing is.
"""

import errno
import glob
import hashlib
import os
import posixpath
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from data_pipeline.errors import ScionError, reason

Answer = TypeVar("Answer")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the attempts of `retry`."""
LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What storage says where asking again is of no help."""
SETTLED = 2.0
"""Seconds since the last change of a file after which another change gets another time, whatever the file system's clock."""
_fingerprints: dict[tuple[int, ...], str] = {}
"""Of this process, by `_state`."""


@contextmanager
def as_os_error() -> Iterator[None]:
    """Raises what a file system raises as an OSError.

    gcsfs, adlfs, botocore and aiohttp have classes of their own, and adlfs raises plain RuntimeErrors. Other exceptions of
    Python itself are mistakes in a program.
    """
    try:
        yield
    except (OSError, ScionError):
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and type(error) is not RuntimeError:
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {reason(error)}") from error


def retry(ask: Callable[[], Answer]) -> Answer:
    """Asks again, after `WAITS`, where the storage fails for a moment.

    Raises:
        OSError: it failed each time, or in a way that lasts.
    """
    for wait in WAITS:
        try:
            return ask()
        except LASTING:
            raise
        except OSError:
            time.sleep(wait)
    return ask()


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path inside it."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def is_local(uri: str) -> bool:
    return isinstance(filesystem(uri)[0], fsspec.implementations.local.LocalFileSystem)


def absolute(uri: str) -> str:
    """A local path made absolute, so that a worker with another working directory finds it; other URIs unchanged."""
    try:
        return os.path.abspath(filesystem(uri)[1]) if is_local(uri) else uri
    except (ValueError, ImportError):  # of a kind that is not known here: whoever reads or writes it will say so
        return uri


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def exists(uri: str) -> bool:
    """Whether a file or a folder is there.

    Raises:
        OSError: the storage did not say; `exists` of fsspec answers no to that.
    """
    return _kind(*filesystem(uri)) is not None


@as_os_error()
def _kind(fs: Any, path: str) -> str | None:
    """`file` or `directory`; None where nothing is."""
    try:
        return str(fs.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def files(uri: str) -> list[str]:
    """Every file below the folder `uri`, as sorted paths relative to it; empty when there is no such folder.

    Raises:
        OSError: it could not be listed.
    """
    fs, path = filesystem(uri)
    if _kind(fs, path) != "directory":
        return []
    root = path.rstrip("/") + "/"
    with as_os_error():
        return sorted(found[len(root) :] for found in (_walk(path) if is_local(uri) else fs.find(path)))


def _walk(path: str) -> Iterator[str]:
    """Every file below a local folder. fsspec's `find` leaves out folders that it fails to list."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | PermissionError):  # gone in between, or none of ours
            raise error

    for folder, _, names in os.walk(path, onerror=failed, followlinks=True):
        yield from (os.path.join(folder, name) for name in names)


def expand(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted; a folder names every file directly in it."""
    if is_local(pattern):
        local = filesystem(pattern)[1]
        found = glob.glob(os.path.join(local, "*") if os.path.isdir(local) else local, recursive=True)
        return sorted(os.path.abspath(path) for path in found if os.path.isfile(path))
    fs, path = filesystem(pattern)
    names = fs.ls(path, detail=False) if fs.isdir(path) else fs.glob(path)
    return sorted(fs.unstrip_protocol(name) for name in names if fs.isfile(name))


@as_os_error()
def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


@as_os_error()
def write_bytes(uri: str, content: bytes) -> None:
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


def check_writable(uri: str, seconds: float = 30.0) -> None:
    """Whether a file can be written below the folder `uri`.

    Raises:
        OSError: it cannot, or storage did not answer in `seconds`.
        ValueError, ImportError: it is of a kind that is not known here, or whose package is missing.
    """
    told: queue.Queue[Exception | None] = queue.Queue()

    def tried() -> None:
        try:
            _probe(join(uri, f".probe-{secrets.token_hex(6)}"))
            told.put(None)
        except Exception as error:  # for whoever waits
            told.put(error)

    threading.Thread(target=tried, daemon=True).start()  # not of a pool, which would be waited for at the end
    try:
        wrong = told.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if wrong is not None:
        raise wrong


def _probe(uri: str) -> None:
    write_bytes(uri, b"")
    remove(uri)


@as_os_error()
def remove(uri: str) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    fs, path = filesystem(uri)
    if _kind(fs, path) is not None:
        fs.rm(path, recursive=True)


@as_os_error()
def fingerprint(uri: str) -> str:
    """Changes when the file's content changes: a SHA-256 for a local file, the store's own checksum elsewhere.

    A process reads a local file once, unless its inode says that it was changed since.
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        return str(fs.checksum(path))
    with open(path, "rb") as file:
        state = _state(file)
        if state not in _fingerprints:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if state != _state(file) or time.time() - max(state[-2:]) / 1e9 < SETTLED:
                return digest
            _fingerprints[state] = digest
    return _fingerprints[state]


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What a write to an open local file changes. A program can set the time of writing back, but not that of the change."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@as_os_error()
def sha256(uri: str) -> str:
    """SHA-256 of a file's content, wherever it is."""
    fs, path = filesystem(uri)
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_fingerprint(uri: str) -> str:
    """Changes when a file below the folder changes, comes or goes."""
    digest = hashlib.sha256()
    for name in files(uri):
        digest.update(f"{name}\0{fingerprint(join(uri, name))}\0".encode())
    return digest.hexdigest()


@contextmanager
def local_copy(uri: str, wanted: Callable[[str], bool] | None = None) -> Iterator[str]:
    """A local folder with the content of the folder `uri`; the folder itself when it is local.

    Args:
        wanted: whether a file, by its path below `uri`, is needed; the others are not fetched.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        if wanted is None:
            with as_os_error():
                fs.get(path.rstrip("/") + "/", folder + "/", recursive=True)
        else:
            fetch(uri, [name for name in files(uri) if wanted(name)], folder)
        yield folder


@as_os_error()
def fetch(uri: str, names: list[str], folder: str) -> None:
    """Copies files below the folder `uri` to a local folder.

    Raises:
        FileNotFoundError: there are none.
    """
    if not names:
        raise FileNotFoundError(errno.ENOENT, "no such files", uri)
    fs, path = filesystem(uri)
    copies = [os.path.join(folder, name) for name in names]
    for parent in {os.path.dirname(copy) for copy in copies}:
        os.makedirs(parent, exist_ok=True)
    fs.get([join(path, name) for name in names], copies)


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A local file with the content and the name of the file `uri`; the file itself when it is local."""
    fs, path = filesystem(uri)
    if is_local(uri):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        copy = os.path.join(folder, os.path.basename(path))
        with as_os_error():
            fs.get_file(path, copy)
        yield copy


@contextmanager
def local_output(uri: str) -> Iterator[str]:
    """A local folder whose files are at `uri` when the block ends without an error."""
    fs, path = filesystem(uri)
    if is_local(uri):
        os.makedirs(path, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        yield folder
        with as_os_error():
            fs.put(folder + "/", path.rstrip("/") + "/", recursive=True)
