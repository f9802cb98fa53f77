"""What one worker of a run is given, and its entry point under Ray Train."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.train
import torch
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.feed.rank_feed import OrderedRows
from trainer.checkpoints.node_copy import node_copy, reads_all
from trainer.checkpoints.store import Store
from trainer.config.train import TrainConfig
from trainer.engine import attempts
from trainer.tasks.heldout_pairs import HeldoutPairs
from trainer.tasks.heldout_text import HeldoutText
from trainer.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """A run as its workers know it. The driver pickles it."""

    task: Task
    config: TrainConfig
    rows: OrderedRows
    heldout: HeldoutText | HeldoutPairs | None
    row_groups: dict[str, NDArray[np.int64]]
    """Embedding rows whose mean norm is logged, by the name of the group."""
    uri: str
    """The run's folder."""
    export_uri: str
    """Where the trained model is written."""
    store: Store
    identity: str
    """Equal for all runs whose checkpoints this run may resume."""
    threads: int
    """torch's threads in a worker without a GPU."""
    progress: Any
    """Handle of the driver's progress actor, or None."""


def train_worker(run: TrainRun) -> dict[str, Any]:
    """Runs on every worker of Ray Train.

    Returns how the attempt ended, the same on every rank: `{"stopped": step}`, `{"error": ...}`, or `{"evaluations": ...,
    "changes": ..., "devices": ...}`.
    """
    from trainer.engine.garbage import manual_collection
    from trainer.engine.loop import Training

    if not torch.cuda.is_available():
        torch.set_num_threads(run.threads)
    with attempts.attempt(run.uri, run.store.lease) as attempt:
        if attempt.error is not None:
            return {"error": attempt.error}
        with local_model(run.task) as task, manual_collection():
            return Training(replace(run, task=task), ray.train.get_dataset_shard("train"), attempt).run()


@contextmanager
def local_model(task: Task) -> Iterator[Any]:
    """The task with its model on this machine's disk. Each file is fetched once a machine; every rank calls it."""
    uri: str | None = getattr(task, "model_uri", None)
    if uri is None or storage.is_local(uri):
        yield task
        return
    with node_copy(uri, reads_all) as folder:
        yield replace(task, model_uri=folder)  # type: ignore[type-var]
