"""Work over many rows, cut into parts that do not depend on each other, here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch


T = TypeVar("T")


class Executor(Protocol):
    """Runs `function(part, *shared)` for every part and yields the answers in the order of the parts.

    What a kernel returns must not depend on how its rows were cut: a part is only a matter of memory and speed.
    """

    @property
    def block_bytes(self) -> int:
        """Scratch memory that one part may take."""
        ...

    @property
    def tasks(self) -> int:
        """How many parts run at once."""
        ...

    def __call__(self, function: Callable[..., T], parts: Sequence[Any], *shared: Any, operations: float = 0.0) -> Iterator[T]:
        """`operations`: floating-point operations of all parts, from which the time is estimated; 0 for work that is soon
        done."""
        ...

    def on_gpu(self, function: Callable[..., T], *arguments: Any) -> T:
        """The answer of one call, which finds a GPU where there is one."""
        ...


class LocalExecutor:
    """In this process, one part after the other."""

    tasks = 1

    def __init__(self, block_bytes: int = 256 << 20) -> None:
        self.block_bytes = block_bytes

    def __call__(self, function: Callable[..., T], parts: Sequence[Any], *shared: Any, operations: float = 0.0) -> Iterator[T]:
        return (function(part, *shared) for part in parts)

    def on_gpu(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)


def blocks(rows: torch.Tensor, row_bytes: int, block_bytes: int, tasks: int = 1) -> list[torch.Tensor]:
    """`rows` cut so that one block at `row_bytes` of scratch a row stays within `block_bytes`, and every task has one."""
    size = min(block_bytes // max(1, row_bytes), -(-len(rows) // tasks))
    return list(rows.split(max(1, size))) if len(rows) else []
