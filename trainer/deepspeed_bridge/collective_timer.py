"""Times the collectives of a process.

On a CPU they block, so that the time is the cost of communication. On a GPU they are asynchronous and not measured. Wraps the
methods of `deepspeed.comm.comm.cdb`, DeepSpeed 0.19.8.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

_COLLECTIVES = (
    "all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter", "all_gather", "all_gather_into_tensor",
    "all_to_all_single", "broadcast",
)  # fmt: skip


class CollectiveTimer:
    """Times DeepSpeed's collectives, from its construction on."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._is_on = not torch.cuda.is_available()
        if self._is_on:
            from deepspeed.comm import comm

            for name in _COLLECTIVES:
                setattr(comm.cdb, name, self._timed(getattr(comm.cdb, name)))

    def take(self) -> float | None:
        """Seconds since the last call; None on a GPU."""
        seconds, self._seconds = self._seconds, 0.0
        return round(seconds, 5) if self._is_on else None

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        """The collective wrapped so that the time of each call, and of waiting for its handle, is added up."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            handle = collective(*arguments, **options)
            self._seconds += time.perf_counter() - began
            return _Handle(handle, self) if options.get("async_op") and handle is not None else handle

        return timed


class _Handle:
    """A handle of an asynchronous collective whose `wait` is timed, too."""

    def __init__(self, handle: Any, timer: CollectiveTimer) -> None:
        self._handle, self._timer = handle, timer

    def wait(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        answer = self._handle.wait(*arguments)
        self._timer.add(time.perf_counter() - began)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
