"""Micro-batches that fit: if a device has no memory for one, the next attempt halves it.

A micro-batch is a number of rows or, for pairs, a chunk of tokens (`Task.chunk_tokens`). A step is the same however it is
divided. The attempt ends, because some ranks may have added gradients of the failed step already.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from data_pipeline.artifacts import storage
from data_pipeline.feed.rank_feed import RankFeed
from trainer.collectives import from_first_rank

NOTE = "micro.json"
"""In a run's folder: the size that fits, and that of the configuration, since a new one is tried first."""


class MicroBatchTooLarge(Exception):
    """A device has no memory for a micro-batch; the next attempt halves it."""


def limit(uri: str, feed: RankFeed, task: Any) -> tuple[RankFeed, Any]:
    """The feed or the task with micro-batches no larger than an earlier attempt found to fit; every rank calls it.

    Raises:
        OSError: the storage fails.
    """
    configured = feed.rows.micro_batch if task.chunk_tokens is None else task.chunk_tokens
    fitting = from_first_rank(lambda: _read_fitting(uri, configured))
    if fitting is None:
        return feed, task
    if task.chunk_tokens is not None:
        return feed, replace(task, chunk_tokens=fitting)
    return replace(feed, rows=replace(feed.rows, micro_batch=fitting)), task


def _read_fitting(uri: str, configured: int | None) -> int | None:
    path = storage.join(uri, NOTE)
    note = json.loads(storage.read_bytes(path)) if storage.exists(path) else {"asked": None, "fits": None}
    return None if note["fits"] is None or note["asked"] != configured else int(note["fits"])


@contextmanager
def halve_when_out_of_memory(uri: str, configured: int | None, size: int, smallest: int = 1) -> Iterator[None]:
    """Around a step: if its memory does not suffice, notes half the micro-batch for the next attempt.

    Args:
        configured: the size in the configuration.
        size: that of the step.
        smallest: what cannot be divided.

    Raises:
        MicroBatchTooLarge: the memory did not suffice for more than the smallest.
    """
    try:
        yield
    except Exception as error:
        if size // 2 < smallest or not is_out_of_memory(error):
            raise
        storage.write_bytes(storage.join(uri, NOTE), json.dumps({"asked": configured, "fits": size // 2}).encode())
        raise MicroBatchTooLarge(f"no memory for {size} rows or tokens at once; {size // 2} are next") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host, where PyTorch has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
