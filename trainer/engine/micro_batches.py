"""Micro-batches that fit: where a device has no memory for one, the run's next attempt computes half as many rows at once.

A step comes to the same however its rows are divided, so that nothing else changes; an objective of which that is not true is
left alone (`Task.divisible`). The attempt ends, because some ranks may already have added gradients of the step that failed.
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
"""In a run's folder: what fits, and the `micro_batch` that was asked for, since another one is tried first."""


class MicroBatchTooLarge(Exception):
    """A micro-batch for which a device has no memory; the next attempt computes half of it."""


def limit_micro_batch(uri: str, feed: RankFeed) -> RankFeed:
    """The feed with no larger micro-batches than are known to fit; every rank calls it.

    Raises:
        OSError: the storage fails.
    """
    found = from_first_rank(lambda: _known(uri, feed.rows.micro_batch))
    return feed if found is None else replace(feed, rows=replace(feed.rows, micro_batch=found))


def _known(uri: str, asked: int | None) -> int | None:
    path = storage.join(uri, NOTE)
    noted = json.loads(storage.read_bytes(path)) if storage.exists(path) else {"asked": None, "fits": None}
    return None if noted["fits"] is None or noted["asked"] != asked else int(noted["fits"])


@contextmanager
def halve_when_out_of_memory(uri: str, asked: int | None, micro: int) -> Iterator[None]:
    """Around a step with `micro` rows at once, where `asked` were asked for.

    Raises:
        TooLarge: there was no memory for them, but there may be for half.
    """
    try:
        yield
    except Exception as error:
        if micro < 2 or not is_out_of_memory(error):
            raise
        storage.write_bytes(storage.join(uri, NOTE), json.dumps({"asked": asked, "fits": micro // 2}).encode())
        raise MicroBatchTooLarge(f"no memory for {micro} rows at once; {micro // 2} are next") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a tensor found no room, on a device or, where PyTorch raises no error of its own for it, in the host's memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
