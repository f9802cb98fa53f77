"""An object store in memory that fails on purpose: `flaky://`, registered with fsspec while the fixture `flaky` is in use."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.artifacts import retries, storage

Fault = Callable[[str, str], None]


class HttpError(Exception):
    """Not an OSError, like gcsfs.retry.HttpError and azure.core.exceptions.AzureError."""


class Flaky(MemoryFileSystem):
    """Calls `fault(operation, path)` before each operation; what that raises is the storage's answer."""

    protocol = "flaky"
    cachable = False
    fault: Fault | None = None
    calls = 0
    inside = threading.local()
    """Whether this thread removes a folder: its files then do not count as operations of their own."""

    def _ask(self, operation: str, path: str) -> None:
        Flaky.calls += 1
        if Flaky.fault is not None:
            Flaky.fault(operation, path)

    def info(self, path: str, **options: Any) -> Any:
        self._ask("info", path)
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._ask("list", path)
        return super().ls(path, detail=detail, **options)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._ask("read" if "r" in mode else "write", path)
        return super().open(path, mode, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._ask("read", path)
        return super().cat_file(path, *arguments, **options)

    def pipe_file(self, path: str, value: bytes, *arguments: Any, **options: Any) -> Any:
        self._ask("write", path)
        return super().pipe_file(path, value, *arguments, **options)

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **options: Any) -> Any:
        self._ask("write", rpath)
        return super().put_file(lpath, rpath, *arguments, **options)

    def rm(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._ask("remove", path)
        Flaky.inside.rm = True
        try:
            return super().rm(path, *arguments, **options)
        finally:
            Flaky.inside.rm = False

    def rm_file(self, path: str) -> None:
        if not getattr(Flaky.inside, "rm", False):
            self._ask("remove", path)
        super().rm_file(path)


def failing(operation: str, part: str, error: Exception, times: int = 10**9) -> Fault:
    """A fault in the first `times` calls of an operation on paths that contain `part`."""
    left = [times]

    def fault(called: str, path: str) -> None:
        if called in operation.split("|") and part in path and left[0] > 0:
            left[0] -= 1
            raise error

    return fault


def every(number: int, error: Exception) -> Fault:
    """A fault in every `number`-th operation."""
    calls = itertools.count(1)

    def fault(operation: str, path: str) -> None:
        if next(calls) % number == 0:
            raise error

    return fault


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(retries, "WAITS", (0.0,) * len(retries.WAITS))
    monkeypatch.setattr(Flaky, "fault", None)
    storage.remove("flaky://run")
    yield Flaky
    Flaky.fault = None
    storage.remove("flaky://run")
