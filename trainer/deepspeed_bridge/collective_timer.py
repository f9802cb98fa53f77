"""Seconds that a process spends in collectives. On a CPU they block, so that the time says what communication costs; on a GPU
they run behind the host, and nothing is told."""

import time
from collections.abc import Callable
from typing import Any

import torch

_COLLECTIVES = (
    "all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter", "all_gather", "all_gather_into_tensor",
    "all_to_all_single", "broadcast",
)  # fmt: skip


class CollectiveTimer:
    """Counts for DeepSpeed's collectives, from when it is made."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._on = not torch.cuda.is_available()
        if self._on:
            from deepspeed.comm import comm

            for name in _COLLECTIVES:
                setattr(comm.cdb, name, self._timed(getattr(comm.cdb, name)))

    def take(self) -> float | None:
        """Seconds since the last time; None where they cannot be told."""
        seconds, self._seconds = self._seconds, 0.0
        return round(seconds, 5) if self._on else None

    def _timed(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            handle = do(*arguments, **options)
            self._seconds += time.perf_counter() - began
            return _Handle(handle, self) if options.get("async_op") and handle is not None else handle

        return timed

    def add(self, seconds: float) -> None:
        self._seconds += seconds


class _Handle:
    """Of a collective that is under way: waiting for it counts too."""

    def __init__(self, handle: Any, waiting: CollectiveTimer) -> None:
        self._handle, self._waiting = handle, waiting

    def wait(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        answer = self._handle.wait(*arguments)
        self._waiting.add(time.perf_counter() - began)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
