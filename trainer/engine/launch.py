"""Starts the workers: Ray Train around `loop.train_worker`."""

from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from data_pipeline import storage
from data_pipeline.errors import ScionError, TrainingError
from data_pipeline.feed.planned import PlannedData
from trainer.engine.loop import TrainRun, train_worker

WORKING, RAYS = "checkpoints", "ray"
"""Folders below the artefact while the run goes on: our checkpoints, and what Ray Train notes of its own."""


def fit(run: TrainRun, *, workers: int, worker_cpus: float, gpu: bool, storage_uri: str) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint if an earlier attempt left one, and returns the run's history.

    Raises:
        ScionError: what a worker raised, or a TrainingError that names Ray's reason.
    """
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": run},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": worker_cpus} | ({"GPU": 1} if gpu else {})
        ),
        run_config=RunConfig(
            name=RAYS,
            storage_path=storage_uri,
            failure_config=FailureConfig(max_failures=run.config.max_failures),
        ),
        datasets={"train": run.rows},
        dataset_config=PlannedData(),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _reason(error) from error
    for folder in (run.store.uri, storage.join(storage_uri, RAYS)):
        storage.remove(folder)
    return dict(result.return_value)


def _reason(error: BaseException) -> ScionError:
    """Our own error from a worker, if that is what stopped the run; else what the first worker said at last, or Ray."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure
        if isinstance(cause, ScionError):
            return cause
    said = str(failures[0] if failures else error).strip().splitlines()[-1]
    return TrainingError(said, "training", "The log of Ray Train has the details; the last checkpoint is intact.")
