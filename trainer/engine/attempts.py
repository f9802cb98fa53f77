"""What one attempt of a run tells the next, and the driver: that it need not try again.

Ray Train starts the workers anew after any exception. An error that Scion explains will be the same at the second attempt, on
whichever rank it was raised, so it is written down, and the next attempt ends at once with it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from data_pipeline import errors, storage
from data_pipeline.errors import ScionError, TrainingError
from data_pipeline.feed.planned import RankFeed
from trainer.engine import guards, runlog
from trainer.engine.runlog import RunLog
from trainer.engine.together import from_first

_FATAL = "fatal.json"
_NAMED = 12
"""Rows that an error names."""


def begin(uri: str) -> None:
    """The driver starts the run in folder `uri`: what earlier drivers gave up on may be tried again.

    Raises:
        OSError: nothing can be written there.
    """
    clear(uri)
    log = RunLog(storage.join(uri, runlog.FOLDER))
    log.write("driver")
    log.sync()


def clear(uri: str) -> None:
    storage.remove(storage.join(uri, _FATAL))


@contextmanager
def told(uri: str) -> Iterator[ScionError | None]:
    """Gives the error that an earlier attempt ended with, the same on every rank; notes one that is raised in the block."""
    content = from_first(lambda: _read(uri))
    try:
        yield _error(content) if content else None
    except ScionError as error:
        told = {"type": type(error).__name__, "args": [error.what, error.where, error.fix]}
        storage.write_bytes(storage.join(uri, _FATAL), json.dumps(told).encode())
        raise


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
    more = f" and {len(rows) - _NAMED} more, all in the run's log" if len(rows) > _NAMED else ""
    raise TrainingError(
        f"{found['count']} attempts in a row died in this step. Its rows are {', '.join(rows[:_NAMED])}{more}.",
        f"step {step} (planned step {feed.planned(step)}, {len(rows)} slots)",
        "Look at those rows and at the log of Ray Train; the last checkpoint is intact, and the same command tries again.",
    )


def _read(uri: str) -> dict[str, Any]:
    path = storage.join(uri, _FATAL)
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}


def _error(told: dict[str, Any]) -> ScionError:
    kind = getattr(errors, told["type"], TrainingError)
    return kind(*told["args"]) if issubclass(kind, ScionError) else TrainingError(*told["args"])
