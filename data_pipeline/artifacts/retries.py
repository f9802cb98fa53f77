"""Retries and time-outs for storage that fails for a moment or does not answer."""

import errno
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import fsspec

from data_pipeline.errors import ConfigError, ScionError, reason

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the attempts of `retry`."""


class AmbiguousTimeout(TimeoutError):
    """A request timed out that must not be repeated, because the first one may still be carried out."""


PERMANENT_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    AmbiguousTimeout,
)
"""Errors that another attempt does not change."""
_PERMANENT_NUMBERS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
)
"""The same, as error numbers of the operating system."""
ANSWER_SECONDS = 30.0
MANY_FILES_SECONDS = 300.0
"""Time that an object store may take to answer, and the extra time for a request about many files."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure"}
"""The extra of this package by which the storage of a protocol is installed."""
_FORBIDDEN = (401, 403)
"""HTTP status codes of a request without permission."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path inside it.

    Raises:
        ConfigError: the protocol is unknown, or its package is missing.
    """
    if "://" not in uri:  # fsspec reads `::` in a path as a chain of file systems
        local = fsspec.filesystem("file")
        return local, local._strip_protocol(uri)
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        extra = _EXTRAS.get(uri.partition("://")[0])
        fix = f"pip install 'scion-lm[{extra}]', on all machines." if extra else "Use another URI."
        raise ConfigError(f"this kind of storage is not available ({reason(error)}).", uri, fix) from error
    return fs, path


def is_local(uri: str) -> bool:
    """Whether it is a path of this machine."""
    return isinstance(filesystem(uri)[0], fsspec.implementations.local.LocalFileSystem)


@contextmanager
def as_os_error() -> Iterator[None]:
    """Turns the errors of a file system into OSErrors.

    gcsfs, adlfs, botocore and aiohttp have exception classes of their own, and adlfs raises plain RuntimeErrors. Other
    exceptions of Python itself are bugs and pass unchanged.
    """
    try:
        yield
    except (OSError, ScionError):
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and type(error) is not RuntimeError:
            raise
        if "Credential" in type(error).__name__ or getattr(error, "status", None) in _FORBIDDEN:
            raise PermissionError(errno.EACCES, f"{type(error).__name__}: {reason(error)}") from error
        raise OSError(errno.EIO, f"{type(error).__name__}: {reason(error)}") from error


def retry(request: Callable[[], Result]) -> Result:
    """Calls `request` again, after each of `WAITS`, while it fails with an error that may pass.

    Raises:
        OSError: every attempt failed, or the error is permanent.
    """
    for wait in WAITS:
        try:
            return request()
        except PERMANENT_ERRORS:
            raise
        except OSError as error:
            if error.errno in _PERMANENT_NUMBERS:
                raise
            time.sleep(wait)
    return request()


def with_retries(
    request: Callable[Arguments, Result], extra_seconds: Callable[Arguments, float] | None = None
) -> Callable[Arguments, Result]:
    """The function with retries, whose errors are all OSErrors.

    A request to an object store also fails when it times out: it is one whose first argument is not a path of this machine.

    Args:
        extra_seconds: time that the answer may take beyond `ANSWER_SECONDS`.
    """

    @functools.wraps(request)
    def with_attempts(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        """Calls `request`, again after an error that may pass; an attempt at an object store has a time limit."""

        def attempt() -> Result:
            with as_os_error():
                return request(*arguments, **named)

        target = arguments[0]
        if isinstance(target, str) and is_local(target):
            return retry(attempt)
        limit = ANSWER_SECONDS + (extra_seconds(*arguments, **named) if extra_seconds is not None else 0.0)
        return retry(lambda: call_with_timeout(attempt, limit))

    return with_attempts


class Clock:
    """Measures how long a request has made no progress."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Notes progress."""
        self._at = time.monotonic()

    def idle_seconds(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._at


_clocks = threading.local()


def request_clock() -> Clock:
    """The clock of this thread's request. Code that moves many bytes restarts it as they move."""
    return getattr(_clocks, "current", None) or Clock()


def call_with_timeout(request: Callable[[], Result], seconds: float, error: type[TimeoutError] = TimeoutError) -> Result:
    """Returns or raises what `request` does. Abandons it after `seconds` without progress (`request_clock`).

    Raises:
        TimeoutError: there was no answer; of the class `error`.
    """
    outcomes: queue.Queue[tuple[Result | None, Exception | None]] = queue.Queue()
    clock = Clock()

    def work() -> None:
        _clocks.current = clock
        try:
            outcomes.put((request(), None))
        except Exception as raised:  # re-raised in the calling thread
            outcomes.put((None, raised))

    threading.Thread(target=work, daemon=True).start()  # not of a pool: the interpreter would wait for it at exit
    while True:
        try:
            result, raised = outcomes.get(timeout=max(0.0, seconds - clock.idle_seconds()))
            break
        except queue.Empty:
            if clock.idle_seconds() >= seconds:
                raise error(f"no answer in {seconds:.0f} s") from None
    if raised is not None:
        raise raised
    return cast(Result, result)
