"""Notes that one attempt of a run leaves for the next and for the driver.

Ray Train restarts the workers after any exception. A `ScionError` would be raised again, on whichever rank it was, so that it
is noted and ends the next attempt at once. So does any exception in our own process before the run's first step is done. Other
exceptions are kept for the error that may end the run later.

The notes lie in a folder named after the driver's lease. A run that another has superseded may continue for a while: its notes
are its own, and it writes none once it knows.
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

from data_pipeline import errors
from data_pipeline.artifacts import storage
from data_pipeline.artifacts.lease import Lease
from data_pipeline.errors import ArtifactError, ScionError, TrainingError, reason
from data_pipeline.feed.rank_feed import RankFeed
from trainer.collectives import from_first_rank
from trainer.engine import guards
from trainer.engine.micro_batches import NOTE, MicroBatchTooLarge, is_out_of_memory
from trainer.monitoring import run_log
from trainer.monitoring.run_log import RunLog

_NOTES, _STEPPED = "attempts", "stepped.json"
"""In a run's folder."""
_FATAL, _STARTING, _FAILED = "fatal.json", "starting.json", "failed"
"""In the folder of notes."""
_NAMED = 12
"""Rows that an error names at most."""
_OUTSIDE = (
    OSError,
    RayError,
    MicroBatchTooLarge,
    dist.DistError,
    *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []),
)
"""Errors of storage, network, other processes, full and broken devices: the next attempt may not meet them."""
_KILLED = "without an exception: killed from outside, perhaps for lack of memory"


@dataclass(slots=True)
class Attempt:
    """The present attempt."""

    uri: str
    lease: Lease | None
    error: ScionError | None = None
    """Why the run ends at once, the same on every rank."""
    has_stepped: bool = False
    """Whether the run has finished a step, in this attempt or an earlier one."""
    _is_noted: bool = False

    def note(self, *path: str) -> str:
        """The path of a note of this driver's attempts."""
        return storage.join(self.uri, _NOTES, "no-lease" if self.lease is None else self.lease.token, *path)

    def superseded_error(self) -> ArtifactError | None:
        """The error of a run that another has taken over; None if it still holds its lease, or the storage does not answer."""
        try:
            if self.lease is not None:
                self.lease.check()
        except ArtifactError as error:
            return error
        except OSError:
            pass
        return None

    def note_start(self) -> None:
        """Notes that the worker is about to train."""
        if dist.get_rank() == 0:
            storage.remove(self.note(_STARTING))

    def note_step(self) -> None:
        """Notes that the worker has finished a step, and drops the failures of earlier attempts."""
        if not self._is_noted and dist.get_rank() == 0:
            storage.remove(self.note(_FAILED))
            if not self.has_stepped:
                storage.write_bytes(storage.join(self.uri, _STEPPED), b"{}")
        self._is_noted = self.has_stepped = True


def begin(uri: str) -> None:
    """Starts the run in folder `uri`, in the driver: removes earlier drivers' notes.

    Raises:
        OSError: nothing can be written there.
    """
    storage.remove(storage.join(uri, _NOTES))
    log = RunLog(storage.join(uri, run_log.FOLDER))
    log.write("driver")
    log.sync()


def clear(uri: str) -> None:
    """Removes all notes of a finished run."""
    for name in (_NOTES, _STEPPED, NOTE):
        storage.remove(storage.join(uri, name))


@contextmanager
def attempt(uri: str, lease: Lease | None = None) -> Iterator[Attempt]:
    """Around all of a worker's attempt; notes what the block raises.

    Raises:
        TrainingError: the last attempts all died before they trained.
    """
    current = Attempt(uri, lease)
    current.error = from_first_rank(lambda: current.superseded_error() or _fatal_error(current))
    current.has_stepped = from_first_rank(lambda: storage.exists(storage.join(uri, _STEPPED)))
    try:
        if current.error is None:
            _check_starts(current)
        yield current
    except ScionError as error:
        with suppress(Exception):  # a failing storage must not hide the error
            _end_run(current, error)
        raise
    except Exception as error:
        with suppress(Exception):
            _note_exception(current, error)
        raise


def _note_exception(current: Attempt, error: Exception) -> None:
    """Notes an exception; ends the run if the next attempt would raise it again."""
    failure = _to_json(error)
    if current.superseded_error() is None:
        storage.write_bytes(current.note(_FAILED, f"{dist.get_rank()}.json"), json.dumps(failure).encode())
    if not current.has_stepped and not failure["outside"]:
        _end_run(current, TrainingError(f"{failure['what']}.", "training, before its first step was done", _advice(error)))


def _end_run(current: Attempt, error: ScionError) -> None:
    """Ends the run: later attempts of this driver raise the error at once. Those of a superseded driver stop by themselves."""
    content = {"type": type(error).__name__, "args": [error.what, error.where, error.fix]}
    if current.superseded_error() is None:
        storage.write_bytes(current.note(_FATAL), json.dumps(content).encode())


def _to_json(error: Exception) -> dict[str, Any]:
    """An exception as JSON."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "what": f"{type(error).__name__}: {reason(error)} (rank {dist.get_rank()}, {last.filename}, line {last.lineno})",
        # Gloo raises plain RuntimeErrors if another rank is gone.
        "outside": isinstance(error, _OUTSIDE) or "/gloo/transport/" in str(error),
        "time": time.time(),
    }


def _advice(error: Exception) -> str:
    if is_out_of_memory(error):
        return (
            "Lower train.micro_batch or embed.chunk_tokens, raise train.zero_stage, or set train.offload or "
            "train.activation_checkpointing."
        )
    return "Nothing was retried, since it would happen again. If it is a bug of Scion, report it with the log of Ray Train."


def last_failure(current: Attempt) -> str:
    """The exception that ended the last attempt. Exceptions from outside, which may follow from another rank's, come last."""
    folder = current.note(_FAILED)
    found = [_read(storage.join(folder, name)) for name in storage.files(folder)]
    latest = sorted(found, key=lambda one: (one["outside"], -one["time"]))
    return f"of {latest[0]['what']}" if latest else _KILLED


def _check_starts(current: Attempt) -> None:
    """Counts attempts that died before they trained.

    Raises:
        TrainingError: there are too many.
    """
    path = current.note(_STARTING)
    count = from_first_rank(lambda: int(_read(path).get("count", 0)))
    if count >= guards.MAX_DEATHS:
        raise TrainingError(
            f"{count} attempts in a row died before they trained, {from_first_rank(lambda: last_failure(current))}.",
            "training, while the model was loaded and the checkpoint restored",
            "Look at the log of Ray Train; the same command tries again.",
        )
    if dist.get_rank() == 0:
        storage.write_bytes(path, json.dumps({"count": count + 1}).encode())


def check_progress(current: Attempt, feed: RankFeed, next_step: int, steps: int) -> int | None:
    """Checks that the run makes progress. Returns the step in which the last attempt died, if it did; every rank calls it.

    Raises:
        TrainingError: the last attempts all died in the same step, which it names with its rows, or after the last of `steps`.
    """
    folder = storage.join(current.uri, run_log.FOLDER)
    found = from_first_rank(lambda: run_log.deaths(run_log.read(folder, guards.MAX_DEATHS, run_log.DEATH_FIELDS)))
    if found["count"] < guards.MAX_DEATHS:
        return int(found["step"]) if found["count"] else None
    step = max(found["step"], next_step)
    died = f"{found['count']} attempts in a row died"
    failure = from_first_rank(lambda: last_failure(current))
    if step >= steps:
        _log_error(folder, step=step)
        raise TrainingError(
            f"{died} while the trained model was evaluated or written, {failure}.",
            f"the end of the run, after all {steps} steps",
            "The last checkpoint holds all that was trained; the same command writes the model again.",
        )
    slots = feed.rows.order.step(feed.order_step(step))
    names = [stream.name for stream in feed.rows.order.streams]
    rows = [f"{names[stream]} {row}" for stream, row in zip(slots.stream, slots.row, strict=True)]
    _log_error(folder, step=step, rows=rows)
    more = f" and {len(rows) - _NAMED} more, all in the run's log" if len(rows) > _NAMED else ""
    raise TrainingError(
        f"{died} in this step, {failure}. Its rows are {', '.join(rows[:_NAMED])}{more}.",
        f"step {step} (step {feed.order_step(step)} of the order, {len(rows)} slots)",
        "Look at those rows and at the log of Ray Train; the last checkpoint is intact, and the same command tries again.",
    )


def _log_error(folder: str, **entry: Any) -> None:
    if dist.get_rank() == 0:
        log = RunLog(folder)
        log.write("error", **entry)
        log.sync()


def _fatal_error(current: Attempt) -> ScionError | None:
    """The error with which an earlier attempt of this driver ended the run."""
    content = _read(current.note(_FATAL))
    return _to_error(content) if content else None


def _read(path: str) -> dict[str, Any]:
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}


def _to_error(content: dict[str, Any]) -> ScionError:
    kind = getattr(errors, content["type"], TrainingError)
    return kind(*content["args"]) if issubclass(kind, ScionError) else TrainingError(*content["args"])
