"""How storage is asked that fails for a moment, or does not answer."""

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

Answer = TypeVar("Answer")
Asked = ParamSpec("Asked")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the attempts of `retry`."""


class AmbiguousTimeout(TimeoutError):
    """Of a request that must not be made a second time while the first may yet be carried out."""


PERMANENT_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    AmbiguousTimeout,
)
"""What storage says where asking again is of no help."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
"""The same, as numbers of the operating system."""
ANSWER_SECONDS = 30.0
MANY_FILES_SECONDS = 300.0
"""How long an object store may take to answer, and how much longer about many files."""
_REFUSED = (401, 403)
"""What HTTP says to somebody who may not."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path inside it.

    Raises:
        ConfigError: it is of a kind that is not known here, or whose package is missing.
    """
    if "://" not in uri:  # fsspec would take `::` in it for a chain of file systems
        local = fsspec.filesystem("file")
        return local, local._strip_protocol(uri)
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"this kind of storage is not at hand ({reason(error)}).", uri, "Name another place.") from error
    return fs, path


def is_local(uri: str) -> bool:
    """Whether it is a path of this machine."""
    return isinstance(filesystem(uri)[0], fsspec.implementations.local.LocalFileSystem)


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
        if "Credential" in type(error).__name__ or getattr(error, "status", None) in _REFUSED:
            raise PermissionError(errno.EACCES, f"{type(error).__name__}: {reason(error)}") from error
        raise OSError(errno.EIO, f"{type(error).__name__}: {reason(error)}") from error


def retry(ask: Callable[[], Answer]) -> Answer:
    """Asks again, after `WAITS`, where the storage fails for a moment.

    Raises:
        OSError: it failed each time, or in a way that lasts.
    """
    for wait in WAITS:
        try:
            return ask()
        except PERMANENT_ERRORS:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise
            time.sleep(wait)
    return ask()


def with_retries(ask: Callable[Asked, Answer], more: Callable[Asked, float] | None = None) -> Callable[Asked, Answer]:
    """The function, asked again where the storage fails for a moment, whose errors are all OSErrors. An object store that does
    not answer has failed, too; its first argument then is no path of this machine.

    Args:
        more: seconds that the answer may take beside `ANSWER_SECONDS`.
    """

    @functools.wraps(ask)
    def asked(*arguments: Asked.args, **named: Asked.kwargs) -> Answer:
        def once() -> Answer:
            with as_os_error():
                return ask(*arguments, **named)

        where = arguments[0]
        if isinstance(where, str) and is_local(where):
            return retry(once)
        longest = ANSWER_SECONDS + (more(*arguments, **named) if more is not None else 0.0)
        return retry(lambda: call_with_timeout(once, longest))

    return asked


class Clock:
    """Of a request: how long nothing has moved."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Something has moved."""
        self._at = time.monotonic()

    def stands(self) -> float:
        """Seconds since something moved."""
        return time.monotonic() - self._at


_clocks = threading.local()


def request_clock() -> Clock:
    """That of the request which this thread makes: whoever fetches much restarts it again and again."""
    return getattr(_clocks, "own", None) or Clock()


def call_with_timeout(ask: Callable[[], Answer], seconds: float, error: type[TimeoutError] = TimeoutError) -> Answer:
    """What `ask` gives or raises. One that gives nothing, and of which nothing moves (`request_clock`), is left behind.

    Raises:
        TimeoutError: there was no answer; of the class `error`.
    """
    answers: queue.Queue[tuple[Answer | None, Exception | None]] = queue.Queue()
    own = Clock()

    def work() -> None:
        _clocks.own = own
        try:
            answers.put((ask(), None))
        except Exception as raised:  # for whoever waits
            answers.put((None, raised))

    threading.Thread(target=work, daemon=True).start()  # not of a pool, which would be waited for at the end
    while True:
        try:
            answer, raised = answers.get(timeout=max(0.0, seconds - own.stands()))
            break
        except queue.Empty:
            if own.stands() >= seconds:
                raise error(f"no answer in {seconds:.0f} s") from None
    if raised is not None:
        raise raised
    return cast(Answer, answer)
