"""Objects and failures that ranks share, so that a failure on one rank is known on all and leaves none waiting.

Without a process group there is one rank.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from data_pipeline.errors import ScionError, reason

T = TypeVar("T")


def from_first_rank(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank, on every rank."""
    values: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]


def from_every_rank(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def failure_on_any_rank(do: Callable[[], None]) -> str:
    """Calls `do` on every rank. Returns the failure of the first rank that failed, on every rank; empty if none did."""
    return first_failure(failure_of(do))


def failure_of(do: Callable[[], None]) -> str:
    """Calls `do` on this rank. Returns why it failed; empty if it did not."""
    try:
        do()
    except (OSError, RuntimeError, ScionError) as error:  # torch.save wraps errors of the disk in RuntimeErrors
        return f"rank {dist.get_rank()}: {error if isinstance(error, ScionError) else reason(error)}"
    return ""


def first_failure(failure: str) -> str:
    """The first failure that is not empty, in rank order, on every rank; empty if all are."""
    return next(filter(None, from_every_rank(failure)), "")
