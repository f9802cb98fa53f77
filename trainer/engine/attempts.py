"""What one attempt of a run leaves for the next, and for the driver: an error that would come again.

Ray Train starts the workers anew after any exception. An error that Scion explains will be the same at the second attempt, on
whichever rank it was raised, so it is written down, and the next attempt ends at once with it. So is any exception of our own
process before the run's first step is done. Whatever else was raised is kept for the error that ends the run later.
"""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from ray.exceptions import RayError

from data_pipeline import errors, storage
from data_pipeline.errors import ScionError, TrainingError, reason
from data_pipeline.feed.planned import RankFeed
from trainer.engine import guards, runlog
from trainer.engine.runlog import RunLog
from trainer.engine.together import from_first

_FATAL, _STARTING, _FAILED, _STEPPED = "fatal.json", "starting.json", "failed", "stepped.json"
_NAMED = 12
"""Rows that an error names."""
_OUTSIDE = (OSError, RayError, dist.DistError, *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []))
"""Of storage, network, other processes and broken devices: they may be gone at the next attempt."""
_KILLED = "without an exception: killed from outside, as for want of memory"


@dataclass(slots=True)
class Attempt:
    """An attempt that is under way."""

    uri: str
    error: ScionError | None
    """That an earlier attempt ended with, the same on every rank."""
    run_stepped: bool
    """Whether the run has finished a step, in this attempt or an earlier one."""
    _stepped: bool = False

    def started(self) -> None:
        """The worker is about to train."""
        if dist.get_rank() == 0:
            storage.remove(storage.join(self.uri, _STARTING))

    def stepped(self) -> None:
        """The worker has finished a step. What earlier attempts died of is overcome."""
        if not self._stepped and dist.get_rank() == 0:
            storage.remove(storage.join(self.uri, _FAILED))
            if not self.run_stepped:
                storage.write_bytes(storage.join(self.uri, _STEPPED), b"{}")
        self._stepped = self.run_stepped = True


def begin(uri: str) -> None:
    """The driver starts the run in folder `uri`: what earlier drivers gave up on may be tried again.

    Raises:
        OSError: nothing can be written there.
    """
    for name in (_FATAL, _STARTING, _FAILED):
        storage.remove(storage.join(uri, name))
    log = RunLog(storage.join(uri, runlog.FOLDER))
    log.write("driver")
    log.sync()


def clear(uri: str) -> None:
    """The run has ended well."""
    for name in (_FATAL, _STARTING, _FAILED, _STEPPED):
        storage.remove(storage.join(uri, name))


@contextmanager
def attempt(uri: str) -> Iterator[Attempt]:
    """Around all that a worker does in one attempt; notes what is raised in the block.

    Raises:
        TrainingError: the last attempts all died before they could train.
    """
    content = from_first(lambda: _read(storage.join(uri, _FATAL)))
    stepped = from_first(lambda: storage.exists(storage.join(uri, _STEPPED)))
    current = Attempt(uri, _error(content) if content else None, stepped)
    try:
        if current.error is None:
            _check_starts(uri)
        yield current
    except ScionError as error:
        with suppress(Exception):  # storage that fails now must not hide what is being raised
            _end(uri, error)
        raise
    except Exception as error:
        with suppress(Exception):
            _keep(current, error)
        raise


def _keep(current: Attempt, error: Exception) -> None:
    """Writes an exception down; ends the run where it would come again."""
    failure = _failure(error)
    storage.write_bytes(storage.join(current.uri, _FAILED, f"{dist.get_rank()}.json"), json.dumps(failure).encode())
    if not current.run_stepped and not failure["outside"]:
        _end(current.uri, TrainingError(f"{failure['what']}.", "training, before its first step was done", _advice(error)))


def _end(uri: str, error: ScionError) -> None:
    """No later attempt tries again."""
    content = {"type": type(error).__name__, "args": [error.what, error.where, error.fix]}
    storage.write_bytes(storage.join(uri, _FATAL), json.dumps(content).encode())


def _failure(error: Exception) -> dict[str, Any]:
    """What is kept of an exception."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "what": f"{type(error).__name__}: {reason(error)} (rank {dist.get_rank()}, {last.filename}, line {last.lineno})",
        # Gloo raises plain RuntimeErrors where another rank is gone.
        "outside": isinstance(error, _OUTSIDE) or "/gloo/transport/" in str(error),
        "time": time.time(),
    }


def _advice(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "Lower train.micro_batch, raise train.zero_stage, or set train.offload or train.activation_checkpointing."
    return "This would come again, so nothing was retried; report it with the log of Ray Train if it is not yours."


def _last_failure(uri: str) -> str:
    """The exception that attempts died of; those that only followed from another rank's come last."""
    folder = storage.join(uri, _FAILED)
    found = [_read(storage.join(folder, name)) for name in storage.files(folder)]
    latest = sorted(found, key=lambda one: (one["outside"], -one["time"]))
    return f"of {latest[0]['what']}" if latest else _KILLED


def _check_starts(uri: str) -> None:
    """Counts the attempts that died before they could train."""
    path = storage.join(uri, _STARTING)
    count = from_first(lambda: int(_read(path).get("count", 0)))
    if count >= guards.DEATHS:
        raise TrainingError(
            f"{count} attempts in a row died before they could train, {from_first(lambda: _last_failure(uri))}.",
            "training, while the model was loaded and the checkpoint restored",
            "Look at the log of Ray Train; the same command tries again.",
        )
    if dist.get_rank() == 0:
        storage.write_bytes(path, json.dumps({"count": count + 1}).encode())


def check_progress(uri: str, feed: RankFeed, next_step: int) -> int | None:
    """Whether going on makes sense, and the step in which the last attempt died, if it did; every rank calls it.

    Raises:
        TrainingError: the last attempts all died in the same step; names it and its rows.
    """
    folder = storage.join(uri, runlog.FOLDER)
    found = from_first(lambda: runlog.deaths(runlog.read(folder, guards.DEATHS)))
    if found["count"] < guards.DEATHS:
        return int(found["step"]) if found["count"] else None
    step = max(found["step"], next_step)
    slots = feed.rows.plan.step(feed.planned(step))
    names = [stream.name for stream in feed.rows.plan.streams]
    rows = [f"{names[stream]} {row}" for stream, row in zip(slots.stream, slots.row, strict=True)]
    if dist.get_rank() == 0:
        log = RunLog(folder)
        log.write("error", step=step, rows=rows)
        log.sync()
    failure = from_first(lambda: _last_failure(uri))
    more = f" and {len(rows) - _NAMED} more, all in the run's log" if len(rows) > _NAMED else ""
    raise TrainingError(
        f"{found['count']} attempts in a row died in this step, {failure}. Its rows are {', '.join(rows[:_NAMED])}{more}.",
        f"step {step} (planned step {feed.planned(step)}, {len(rows)} slots)",
        "Look at those rows and at the log of Ray Train; the last checkpoint is intact, and the same command tries again.",
    )


def _read(path: str) -> dict[str, Any]:
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}


def _error(content: dict[str, Any]) -> ScionError:
    kind = getattr(errors, content["type"], TrainingError)
    return kind(*content["args"]) if issubclass(kind, ScionError) else TrainingError(*content["args"])
