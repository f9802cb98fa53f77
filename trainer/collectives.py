"""What ranks do together, so that what goes wrong on one is known to all and leaves none waiting."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from data_pipeline.errors import ScionError, reason

Made = TypeVar("Made")


def from_first_rank(make: Callable[[], Made]) -> Made:
    """What the first rank makes, on every rank."""
    made: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def from_every_rank(made: Made) -> list[Made]:
    """What each rank has made, on every rank."""
    if not dist.is_initialized():
        return [made]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, made)
    return found


def failure_on_any_rank(do: Callable[[], None]) -> str:
    """Does something on every rank and answers, on every rank alike, what went wrong on the first on which it did; empty if
    all went well. A full disk on one rank must not leave the others waiting."""
    return first_failure(failure_of(do))


def failure_of(do: Callable[[], None]) -> str:
    try:
        do()
    except (OSError, RuntimeError, ScionError) as error:  # torch.save wraps what the disk says in a RuntimeError
        return f"rank {dist.get_rank()}: {error if isinstance(error, ScionError) else reason(error)}"
    return ""


def first_failure(said: str) -> str:
    return next(filter(None, from_every_rank(said)), "")
