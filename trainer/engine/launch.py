"""Starts the workers: Ray Train around `worker.train_worker`, by way of `entry`."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from data_pipeline.artifacts import storage
from data_pipeline.errors import ScionError, Stopped, TrainingError
from data_pipeline.feed.rank_feed import OrderedData
from trainer.engine import attempts
from trainer.engine.entry import enter
from trainer.engine.process_group import GroupConfig, flight_folder
from trainer.engine.train_run import TrainRun
from trainer.monitoring import run_log

RAY_FOLDER = "ray"
"""Below the artefact: Ray Train's own files, until the run ends."""
_POINTS = 2000
_KEPT = ("step", "planned", "loss", "norm", "rate", "applied", "seconds", "data_wait")


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to the caller: Ray's own handler aborts the training without a checkpoint and without a message."""

    def _register_sigint_handler(self, controller: Any) -> None: ...


def fit(run: TrainRun, *, workers: int | tuple[int, int], worker_cpus: float, gpu: bool) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint if there is one, and returns the run's history.

    The checkpoints are kept until the artefact is committed: a kill before that must not lose the run.

    Args:
        workers: a number, or the lowest and the highest: the run then uses as many as there is room for.

    Raises:
        Stopped: the user stopped it; the same call resumes.
        ScionError: what a worker raised, or a TrainingError with Ray's reason.
    """
    attempts.begin(run.uri)
    ended = start(
        enter,
        {"run": cloudpickle.dumps(run)},
        run.uri,
        workers=workers,
        worker_cpus=worker_cpus,
        gpu=gpu,
        minutes=run.config.first_step_minutes,
        max_failures=run.config.max_failures,
        datasets={"train": run.rows},
        dataset_config=OrderedData(),
    )
    return conclude(run, ended)


def start(
    function: Callable[[dict[str, bytes]], dict[str, Any]],
    payload: dict[str, bytes],
    uri: str,
    *,
    workers: int | tuple[int, int],
    worker_cpus: float,
    gpu: bool,
    minutes: float,
    max_failures: int = 0,
    **feed: Any,
) -> dict[str, Any]:
    """What `function(payload)` returns on the workers of Ray Train, in a process group.

    Args:
        uri: the folder below which Ray Train keeps its own files meanwhile.
        minutes: the longest that a rank waits for another.
        feed: the arguments of the trainer that concern its data.

    Raises:
        ScionError: what a worker raised, or a TrainingError with Ray's reason.
    """
    trainer = _Trainer(
        function,
        train_loop_config=payload,
        torch_config=GroupConfig(
            backend="nccl" if gpu else "gloo",
            timeout_s=math.ceil(60 * minutes),
            flight_folder=flight_folder(uri) if gpu else None,
        ),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": worker_cpus} | ({"GPU": 1} if gpu else {})
        ),
        run_config=RunConfig(name=RAY_FOLDER, storage_path=uri, failure_config=FailureConfig(max_failures=max_failures)),
        **feed,
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    storage.remove(storage.join(uri, RAY_FOLDER))
    with suppress(OSError):  # it is not empty if NCCL has written to it
        os.rmdir(flight_folder(uri))
    return dict(result.return_value)


def conclude(run: TrainRun, ended: dict[str, Any]) -> dict[str, Any]:
    """The history of a run whose workers have `ended` (`worker.train_worker`).

    Raises:
        Stopped: the user stopped it; the same call resumes.
        ScionError: what a worker raised.
    """
    if "error" in ended:
        raise ended["error"]
    if "stopped" in ended:
        raise Stopped(f"stopped after step {ended['stopped']} of {run.config.steps}; the same command resumes it.", run.uri)
    attempts.clear(run.uri)
    attempts_logged = run_log.read(storage.join(run.uri, run_log.FOLDER), fields=_KEPT)
    return ended | {"history": _history(run_log.steps(attempts_logged))}


def _history(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The part of the log that the artefact keeps: enough points for a curve, however long the run is."""
    apart = -(-len(steps) // _POINTS)
    kept = [entry for number, entry in enumerate(steps, 1) if (len(steps) - number) % apart == 0]
    return [{name: entry[name] for name in _KEPT} for entry in kept]


def _cause(error: BaseException) -> ScionError:
    """Our own error if a worker raised one; else the last line of the first worker's failure, or of Ray's."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure
        if isinstance(cause, ScionError):
            return cause
    line = str(failures[0] if failures else error).strip().splitlines()[-1]
    return TrainingError(line, "training", "The log of Ray Train has the details; the last checkpoint is intact.")
