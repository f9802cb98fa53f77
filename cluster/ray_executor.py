"""Kernels on Ray: parts of the work as tasks, as many at once as each machine's CPUs and the bound on its memory allow."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from cluster.capacity import has_gpus
from data_pipeline.errors import ConfigError

T = TypeVar("T")
_PROCESS = 450 << 20
"""Resident memory of a process that has imported torch and holds no data."""
_BLOCK, _LEAST_BLOCK = 256 << 20, 32 << 20
"""Scratch memory of a part: larger ones are not faster; smaller ones only where not even one task has room for this."""


class RayExecutor:
    """See `trainer.executor.Executor`.

    Args:
        max_memory: bytes that the driver and all tasks may take together on a machine.
        said: is told what is about to start: its size, and estimates of its time and memory.
        progress: is told how many parts are done of how many.
    """

    def __init__(
        self,
        max_memory: int,
        said: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._max_memory, self._said, self._progress = max_memory, said, progress
        self._cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]] or [1]
        most = max(1, *self._cpus)
        of_all, of_one = ((max_memory - (1 + tasks) * _PROCESS) // 3 // tasks for tasks in (most, 1))
        self.block_bytes = max(1 << 20, min(_BLOCK, max(of_all, min(_LEAST_BLOCK, of_one))))
        self.tasks = self._at_once(self._cpus_of_a_task(0))

    def __call__(self, function: Callable[..., T], parts: Sequence[Any], *shared: Any, operations: float = 0.0) -> Iterator[T]:
        """Runs `function(part, *shared)` for every part, in order.

        Raises:
            ConfigError: one task, the parts and what they share would not fit into the bound.
        """
        # The driver's rows and the store's copy of what is shared.
        held = 2 * sum(map(_size, shared)) + 2 * sum(map(_size, parts))
        needed = held + 2 * _PROCESS + self.block_bytes
        if needed > self._max_memory:
            raise ConfigError(
                f"{needed / 2**30:.1f} GiB are needed, {self._max_memory / 2**30:.1f} are allowed.",
                "transfer.max_memory",
                "Allow more, or take a smaller vocabulary or narrower vectors.",
            )
        cpus = self._cpus_of_a_task(held)
        at_once = self._at_once(cpus)
        if operations:
            here = min(len(parts), max(self._cpus) // cpus)
            taken = needed + (here - 1) * (_PROCESS + self.block_bytes)
            seconds = operations / (_operations_a_second() * min(len(parts), at_once))
            self._said(f"search for neighbours: {len(parts)} tasks, about {seconds:.0f} s and {taken / 2**30:.1f} GiB")
        task = _run.options(num_cpus=cpus)
        handles = [ray.put(_packed(value)) for value in shared]
        body = ray.put(function)
        running: deque[Any] = deque()
        for number, part in enumerate(parts):
            running.append(task.remote(body, _packed(part), *handles))
            if len(running) >= 2 * at_once:
                yield ray.get(running.popleft())
                self._progress(number + 1 - len(running), len(parts))
        while running:
            yield ray.get(running.popleft())
            self._progress(len(parts) - len(running), len(parts))

    def on_gpu(self, function: Callable[..., T], *arguments: Any) -> T:
        """In a task on a node that has a GPU; here, where none has."""
        if not has_gpus():
            return function(*arguments)
        try:
            answer: T = ray.get(ray.remote(num_gpus=1)(function).remote(*arguments))
        except RayTaskError as error:
            raise error.cause from error
        return answer

    def _cpus_of_a_task(self, held: int) -> int:
        """What a task asks for, so that no machine runs more of them than fit beside the driver and its `held` bytes."""
        fit = max(1, (self._max_memory - held - _PROCESS) // (_PROCESS + self.block_bytes))
        return max(1, -(-max(self._cpus) // fit))

    def _at_once(self, cpus: int) -> int:
        return max(1, sum(own // cpus for own in self._cpus))


@ray.remote
def _run(function: Callable[..., T], part: Any, *shared: Any) -> T:
    return function(_unpacked(part), *map(_unpacked, shared))


class _Tensor:
    """A tensor on its way: Ray shares NumPy arrays without copying, tensors it would copy into every task."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.array = tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _packed(value: Any) -> Any:
    return _Tensor(value) if isinstance(value, torch.Tensor) else value


def _unpacked(value: Any) -> Any:
    if not isinstance(value, _Tensor):
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array is read-only; nothing writes to it
        return torch.from_numpy(value.array).view(value.dtype)  # NumPy has no bf16: it travels as its bits


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, (torch.Tensor, np.ndarray)) else 0


def _operations_a_second() -> float:
    """What one CPU does, measured by a product of the size that kernels take."""
    with torch.no_grad():
        left, right = torch.ones(512, 300), torch.ones(300, 4096)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        left @ right
        start = time.perf_counter()
        left @ right
        seconds = time.perf_counter() - start
        torch.set_num_threads(threads)
    return 2.0 * 512 * 300 * 4096 / seconds
