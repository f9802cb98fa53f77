"""Exports model folders out of a run's checkpoints while it trains.

A process of the lowest priority makes each: in the worker's process, reading a checkpoint and building a model would delay the
training, and both draw random numbers. It takes memory for two fp32 copies of the model, on the host of the first rank.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any

import torch.distributed as dist

from data_pipeline.artifacts import artifact
from data_pipeline.errors import ArtifactError
from trainer.checkpoints.export import remove_drafts
from trainer.checkpoints.store import Store
from trainer.collectives import from_first_rank
from trainer.config.train import TrainConfig
from trainer.ledger.step_name import step_of
from trainer.monitoring.journal import Journal

_SECONDS = 0.2
_HELD = 2
"""Checkpoints that are protected for waiting exports, beside that of the running one."""


@dataclass(slots=True)
class _Export:
    """A running export."""

    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    began: float


class ExportQueue:
    """One export at a time, in order; only on the first rank.

    A failure is logged and shown to the user, and training continues.
    """

    def __init__(self, config: TrainConfig, store: Store, uri: str, journal: Journal, progress: Any) -> None:
        """`uri` is the run's folder; the folder of a step is named after it."""
        self._config, self._store, self._uri = config, store, uri
        self._journal, self._progress = journal, progress
        self._first = dist.get_rank() == 0
        self._waiting: list[str] = []
        self._current: _Export | None = None

    @property
    def reading(self) -> set[str]:
        """Checkpoints that must not be removed now: those of the running export and of the next few.

        A resumed run may have many to make up for. The thread that removes checkpoints asks.
        """
        current, waiting = self._current, self._waiting[:_HELD]
        return {*([] if current is None else [current.name]), *waiting}

    def resume(self, lineage: list[str]) -> None:
        """Adds the exports that a kill prevented: checkpoints in `lineage` that exist and have no folder."""
        if self._first and self._config.export_steps is not None:
            usable = self._store.usable()
            last = {step_of(name): name for name in lineage}  # a run that rolled back has saved a step twice
            for _, name in sorted(last.items()):
                if name in usable and not self._is_exported(name):
                    self.add(name)

    def _is_exported(self, name: str) -> bool:
        """Whether the folder is of this checkpoint, not of one of the same step before a rollback."""
        with contextlib.suppress(ArtifactError):  # unreadable: the export will report it
            found = artifact.load(self._folder(name))
            return found is not None and found.config.get("checkpoint") == name
        return False

    def add(self, name: str) -> None:
        """Queues the export of a committed checkpoint if its step is due."""
        if self._first and self._config.is_export_due(step_of(name)):
            self._waiting.append(name)
            self.poll()

    def poll(self) -> None:
        """Notes the end of the running export and starts the next; does not wait."""
        if self._current is not None and self._current.process.poll() is not None:
            self._record_end(self._current)
            self._current = None
        while self._current is None and self._waiting:
            name = self._waiting.pop(0)
            if name in self._store.usable():
                self._current = self._begin(name)
            else:
                self._failed(name, "its checkpoint is removed already: raise export_steps or keep_checkpoints")

    def finish(self) -> None:
        """Waits for all exports; every rank calls it.

        They may take hours, more than the time-out of a collective, so that the other ranks ask the first again and again.
        """
        while from_first_rank(self._has_more):
            time.sleep(_SECONDS)

    def _has_more(self) -> bool:
        self.poll()
        return self._current is not None

    def stop(self) -> None:
        """Ends the running export, which removes its draft; `resume` repeats it."""
        if self._current is not None:
            self._current.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._current.process.wait(timeout=10)
        self._current, self._waiting = None, []

    def _folder(self, name: str) -> str:
        return f"{self._uri.rstrip('/')}-step-{step_of(name)}"

    def _begin(self, name: str) -> _Export:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "trainer.checkpoints.export", self._store.uri, name, self._folder(name)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        return _Export(name, process, errors, time.perf_counter())

    def _record_end(self, export: _Export) -> None:
        """Writes to the run log how an ended export process went; if it failed, also removes its drafts."""
        with export.errors:
            export.errors.seek(0)
            lines = export.errors.read().decode(errors="replace").strip().splitlines()
        if export.process.returncode:
            with contextlib.suppress(ArtifactError, OSError):  # a killed process has not removed its draft
                remove_drafts(self._folder(export.name))
            self._failed(export.name, lines[-1] if lines else f"it ended with code {export.process.returncode}")
            return
        seconds = round(time.perf_counter() - export.began, 3)
        self._journal.write("export", step=step_of(export.name), uri=self._folder(export.name), seconds=seconds)

    def _failed(self, name: str, why: str) -> None:
        step = step_of(name)
        self._journal.write("export", step=step, uri=self._folder(name), wrong=why)
        if self._progress is not None:
            self._progress.note.remote(f"no model folder of step {step}: {why}")
