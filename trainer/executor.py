"""Runs independent blocks of work, locally or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch


T = TypeVar("T")


class Executor(Protocol):
    """Runs `function(part, *broadcast)` for every part and yields the results in the order of the parts.

    A result must not depend on how the work was cut: parts only bound memory and set the speed.
    """

    @property
    def block_bytes(self) -> int:
        """Scratch memory that one part may take."""
        ...

    @property
    def tasks(self) -> int:
        """Number of parts that run at once."""
        ...

    def __call__(
        self, function: Callable[..., T], parts: Sequence[Any], *broadcast: Any, operations: float = 0.0
    ) -> Iterator[T]:
        """Runs all parts.

        Args:
            broadcast: arguments that every task gets.
            operations: floating-point operations of all parts, for an estimate of the time; 0 for short work.
        """
        ...

    def on_gpu(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of one call, on a GPU if there is one."""
        ...


class LocalExecutor:
    """Runs the parts in this process, one after the other."""

    tasks = 1

    def __init__(self, block_bytes: int = 256 << 20) -> None:
        self.block_bytes = block_bytes

    def __call__(
        self, function: Callable[..., T], parts: Sequence[Any], *broadcast: Any, operations: float = 0.0
    ) -> Iterator[T]:
        return (function(part, *broadcast) for part in parts)

    def on_gpu(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)


def blocks(rows: torch.Tensor, row_bytes: int, block_bytes: int, tasks: int = 1) -> list[torch.Tensor]:
    """Splits `rows` so that a block needs at most `block_bytes` (`row_bytes` of scratch a row) and every task has a block."""
    size = min(block_bytes // max(1, row_bytes), -(-len(rows) // tasks))
    return list(rows.split(max(1, size))) if len(rows) else []
