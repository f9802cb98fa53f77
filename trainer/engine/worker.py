"""The function that Ray Train runs on every worker of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray.train
import torch

from data_pipeline.artifacts import storage
from trainer.checkpoints.node_copy import node_copy, reads_all
from trainer.engine import attempts
from trainer.engine.garbage import manual_collection
from trainer.engine.loop import Training
from trainer.engine.train_run import TrainRun
from trainer.tasks.task import Task


def train_worker(run: TrainRun) -> dict[str, Any]:
    """Runs on every worker of Ray Train.

    Returns how the attempt ended, the same on every rank: `{"stopped": step}`, `{"error": ...}`, or `{"evaluations": ...,
    "changes": ..., "devices": ...}`.
    """
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
