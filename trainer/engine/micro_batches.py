"""Micro-batches that fit: if a device has no memory for one, the next attempt halves it.

A step is the same however its rows are divided, so that nothing else changes; tasks for which that is not true are left alone
(`Task.divisible`). The attempt ends, because some ranks may have added gradients of the failed step already.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from data_pipeline.artifacts import storage
from data_pipeline.feed.rank_feed import RankFeed
from trainer.collectives import from_first_rank

NOTE = "micro.json"
"""In a run's folder: the size that fits, and the `micro_batch` of the configuration, since a new one is tried first."""


class MicroBatchTooLarge(Exception):
    """A device has no memory for a micro-batch; the next attempt halves it."""


def limit_micro_batch(uri: str, feed: RankFeed) -> RankFeed:
    """The feed with micro-batches no larger than an earlier attempt found to fit; every rank calls it.

    Raises:
        OSError: the storage fails.
    """
    fitting = from_first_rank(lambda: _read_fitting(uri, feed.rows.micro_batch))
    return feed if fitting is None else replace(feed, rows=replace(feed.rows, micro_batch=fitting))


def _read_fitting(uri: str, configured: int | None) -> int | None:
    path = storage.join(uri, NOTE)
    note = json.loads(storage.read_bytes(path)) if storage.exists(path) else {"asked": None, "fits": None}
    return None if note["fits"] is None or note["asked"] != configured else int(note["fits"])


@contextmanager
def halve_when_out_of_memory(uri: str, configured: int | None, micro: int) -> Iterator[None]:
    """Around a step: if its memory does not suffice, notes half the micro-batch for the next attempt.

    Args:
        configured: the `micro_batch` of the configuration.
        micro: the micro-batch of the step.

    Raises:
        MicroBatchTooLarge: the memory did not suffice for more than one row.
    """
    try:
        yield
    except Exception as error:
        if micro < 2 or not is_out_of_memory(error):
            raise
        storage.write_bytes(storage.join(uri, NOTE), json.dumps({"asked": configured, "fits": micro // 2}).encode())
        raise MicroBatchTooLarge(f"no memory for {micro} rows at once; {micro // 2} are next") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host, where PyTorch has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
