"""TensorBoard, Weights & Biases and MLflow (`TrainConfig.track`), each by its own library.

Their settings are their own environment variables (`WANDB_PROJECT`, `WANDB_API_KEY`, `MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME`, ...).

A tracker runs in a thread: training never waits for it or fails with it. One that fails is dropped after a warning.
"""

import hashlib
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from data_pipeline.artifacts import storage
from data_pipeline.errors import reason

FOLDER = "tensorboard"
"""Below a run's folder."""
MAX_QUEUED = 10_000
"""Queued records after which a tracker counts as failed."""
CLOSE_SECONDS = 30.0
Record = tuple[int, dict[str, float]]
"""A step, and its numbers by name."""
Send = Callable[[list[Record]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A run as trackers know it. `begun` tells it from other runs with the same settings in the same folder, such as a time."""

    uri: str
    identity: str
    begun: str
    settings: dict[str, Any]
    next_step: int

    @property
    def id(self) -> str:
        """Equal in every attempt of the run."""
        return hashlib.sha256(f"{self.identity} {self.uri} {self.begun}".encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        return "/".join(self.uri.rstrip("/").split("/")[-2:])


@contextmanager
def tensorboard(run: Tracked) -> Iterator[Send]:
    """Removes steps from `next_step` on, which are repeated."""
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(storage.join(run.uri, FOLDER), purge_step=run.next_step, flush_secs=10)

    def send(rows: list[Record]) -> None:
        for step, numbers in rows:
            for name, value in numbers.items():
                board.add_scalar(name, value, step)

    yield send
    board.close()


@contextmanager
def wandb(run: Tracked) -> Iterator[Send]:
    """Online, or offline below the run's folder, as WANDB_MODE has it; `wandb sync` sends what is offline."""
    import wandb as library

    folder = storage.filesystem(run.uri)[1] if storage.is_local(run.uri) else tempfile.gettempdir()
    settings = library.Settings(console="off", silent=True, disable_git=True, disable_code=True)
    begun = library.init(
        id=run.id,
        name=run.name,
        dir=folder,
        resume="allow",
        config=run.settings,
        settings=settings,
        project=os.environ.get("WANDB_PROJECT", "scion"),
    )

    def send(rows: list[Record]) -> None:
        for step, numbers in rows:
            begun.log(numbers, step=step)

    yield send
    begun.finish()


@contextmanager
def mlflow(run: Tracked) -> Iterator[Send]:
    """MLflow names its runs itself, so that a tag identifies ours."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, experiment = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", "scion")
    there = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if there is None else there.experiment_id
    if found := client.search_runs([number], f"tags.`scion.run` = '{run.id}'"):
        name = found[0].info.run_id
        client.update_run(name, status="RUNNING")
    else:
        name = client.create_run(number, run_name=run.name, tags={"scion.run": run.id}).info.run_id
        client.log_batch(name, params=[Param(key, str(value)) for key, value in run.settings.items()])

    def send(rows: list[Record]) -> None:
        now = int(1000 * time.time())
        # On its files "loss" and "loss/el" would be a file and a folder of one name.
        found = [Metric(key.replace("/", "."), value, now, step) for step, numbers in rows for key, value in numbers.items()]
        for first in range(0, len(found), 1000):  # the most that a request may hold
            client.log_batch(name, metrics=found[first : first + 1000])

    yield send
    client.set_terminated(name)


TRACKERS: dict[str, Callable[[Tracked], AbstractContextManager[Send]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
"""By the name of the package that each imports, and of Scion's extra."""


class Tracker:
    """A tracker of the table, in a thread of its own."""

    def __init__(self, kind: str, run: Tracked, warn: Callable[[str], None]) -> None:
        """`warn` is called once if it fails."""
        self._kind, self._run, self._warn, self._over = kind, run, warn, False
        self._rows: queue.Queue[Record | None] = queue.Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._serve, name=f"track-{kind}", daemon=True)
        self._thread.start()

    def put(self, step: int, numbers: dict[str, float]) -> None:
        """Queues the numbers of a step."""
        if self._over:
            return
        try:
            self._rows.put_nowait((step, numbers))
        except queue.Full:
            self._fail(f"it is {MAX_QUEUED:,} steps behind")

    def close(self) -> None:
        """Sends what is queued, within a time limit."""
        if not self._over and not self._rows.full():
            self._rows.put_nowait(None)
            self._thread.join(CLOSE_SECONDS)

    def _serve(self) -> None:
        try:
            with TRACKERS[self._kind](self._run) as send:
                while rows := self._next():
                    send(rows)
        except (Exception, SystemExit) as error:
            self._fail(f"{type(error).__name__}: {reason(error)}")

    def _next(self) -> list[Record]:
        """All queued records, at least one; none at the end."""
        found = [self._rows.get()]
        while found[-1] is not None and not self._rows.empty():
            found.append(self._rows.get())
        if found[-1] is None:
            self._rows.put(None)
        return [row for row in found if row is not None]

    def _fail(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._warn(f"{self._kind} shows no more of this run ({why}); the log is complete")
