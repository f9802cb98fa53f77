"""Runs blocks of work as Ray tasks, as many at once as each machine's CPUs and its memory limit allow."""

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
_PROCESS_BYTES = 450 << 20
"""Resident memory of a process that has imported torch and holds no data."""
_MAX_BLOCK, _MIN_BLOCK = 256 << 20, 32 << 20
"""Scratch memory of a block. Larger blocks are not faster; smaller ones are used only if not even one task has room."""


class RayExecutor:
    """See `trainer.executor.Executor`.

    Args:
        max_memory: bytes that the driver and all tasks may use together on a machine.
        note: receives a line before work starts: its size, and estimates of its time and memory.
        progress: receives the number of finished blocks and of all blocks.
    """

    def __init__(
        self,
        max_memory: int,
        note: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._max_memory, self._note, self._progress = max_memory, note, progress
        self._cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]] or [1]
        max_cpus = max(1, *self._cpus)
        with_all, with_one = ((max_memory - (1 + tasks) * _PROCESS_BYTES) // 3 // tasks for tasks in (max_cpus, 1))
        self.block_bytes = max(1 << 20, min(_MAX_BLOCK, max(with_all, min(_MIN_BLOCK, with_one))))
        self.tasks = self._concurrent_tasks(self.cpus_per_task(0))

    def __call__(
        self, function: Callable[..., T], parts: Sequence[Any], *broadcast: Any, operations: float = 0.0
    ) -> Iterator[T]:
        """Runs `function(part, *broadcast)` for every part, in order.

        Raises:
            ConfigError: one task, the parts and the broadcast arguments would not fit into the memory limit.
        """
        # The driver's own arrays and their copies in the object store.
        data_bytes = 2 * sum(map(_size, broadcast)) + 2 * sum(map(_size, parts))
        needed = data_bytes + 2 * _PROCESS_BYTES + self.block_bytes
        if needed > self._max_memory:
            raise ConfigError(
                f"{needed / 2**30:.1f} GiB are needed, {self._max_memory / 2**30:.1f} are allowed.",
                "transfer.max_memory",
                "Allow more, or take a smaller vocabulary or narrower vectors.",
            )
        cpus = self.cpus_per_task(data_bytes)
        concurrent = self._concurrent_tasks(cpus)
        if operations:
            per_node = min(len(parts), max(self._cpus) // cpus)
            memory = needed + (per_node - 1) * (_PROCESS_BYTES + self.block_bytes)
            seconds = operations / (_operations_per_second() * min(len(parts), concurrent))
            self._note(f"search for neighbours: {len(parts)} tasks, about {seconds:.0f} s and {memory / 2**30:.1f} GiB")
        task = _run.options(num_cpus=cpus)
        handles = [ray.put(_to_array(value)) for value in broadcast]
        body = ray.put(function)
        running: deque[Any] = deque()
        for number, part in enumerate(parts):
            running.append(task.remote(body, _to_array(part), *handles))
            if len(running) >= 2 * concurrent:
                yield ray.get(running.popleft())
                self._progress(number + 1 - len(running), len(parts))
        while running:
            yield ray.get(running.popleft())
            self._progress(len(parts) - len(running), len(parts))

    def on_gpu(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs the function in a task on a node with a GPU; in this process if there is none."""
        if not has_gpus():
            return function(*arguments)
        try:
            answer: T = ray.get(ray.remote(num_gpus=1)(function).remote(*arguments))
        except RayTaskError as error:
            raise error.cause from error
        return answer

    def cpus_per_task(self, data_bytes: int) -> int:
        """CPUs that a task reserves, so that a machine runs no more tasks than fit beside the driver and the `data_bytes`."""
        fitting = max(1, (self._max_memory - data_bytes - _PROCESS_BYTES) // (_PROCESS_BYTES + self.block_bytes))
        return max(1, -(-max(self._cpus) // fitting))

    def _concurrent_tasks(self, cpus: int) -> int:
        return max(1, sum(node_cpus // cpus for node_cpus in self._cpus))


@ray.remote
def _run(function: Callable[..., T], part: Any, *broadcast: Any) -> T:
    return function(_to_tensor(part), *map(_to_tensor, broadcast))


class _TensorArray:
    """A tensor as a NumPy array: Ray shares arrays without copying, and would copy tensors into every task."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.array = tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_array(value: Any) -> Any:
    return _TensorArray(value) if isinstance(value, torch.Tensor) else value


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, _TensorArray):
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array is read-only; nothing writes to it
        return torch.from_numpy(value.array).view(value.dtype)  # NumPy has no bf16: it is sent as its bits


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, (torch.Tensor, np.ndarray)) else 0


def _operations_per_second() -> float:
    """The speed of one CPU, measured by a matrix product of the size that kernels use."""
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
