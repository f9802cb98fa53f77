"""Saves checkpoints beside the training; all ranks decide together."""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from data_pipeline.errors import ArtifactError, TrainingError
from trainer.checkpoints.state import RunState
from trainer.checkpoints.store import STATE, Store
from trainer.collectives import failure_of, failure_on_any_rank, first_failure, from_first_rank
from trainer.deepspeed_bridge.checkpoint_parts import checkpoint_parts
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import new_name

MAX_MISSED = 2
"""Consecutive failed saves that a run tolerates."""


@dataclass(slots=True)
class _Write:
    """A checkpoint being written in the background."""

    name: str
    rows: list[pa.Table]
    """The ledger's rows in it; they return to the ledger if the save fails."""
    failure: Future[str]
    """Why this rank could not write its part; empty if it could."""
    began: float
    step: int
    commit: "Future[_Commit] | None" = None
    """Set once all ranks have written their parts."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """How a commit ended; all fields are empty on success."""

    taken_over: str = ""
    """Why the folder is another run's."""
    failure: str = ""
    prune_failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveResult:
    """How a save ended."""

    name: str
    step: int
    seconds: float
    """From `begin` to the commit."""
    failure: str
    """Why the checkpoint does not count; empty if it does."""
    prune_failure: str = ""
    """Why older checkpoints could not be removed; the next save tries again."""


class CheckpointWriter:
    """Saves checkpoints beside the training.

    `begin` copies the state and a thread writes it; the checkpoint counts once every rank has written its part, which the ranks
    find out together.
    """

    def __init__(self, engine: Any, store: Store, ledger: Ledger, reading: Callable[[], Collection[str]] = tuple) -> None:
        """
        Args:
            reading: names the checkpoints that an export of this run reads; the first rank's answer counts.
        """
        self._engine, self._store, self._ledger, self._reading = engine, store, ledger, reading
        self._write: _Write | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")

    @property
    def is_written(self) -> bool:
        """Whether this rank has written its part, or then its commit: `finish` would not wait for it."""
        return self._write is not None and (self._write.commit or self._write.failure).done()

    def begin(self, state: RunState) -> None:
        """Starts a checkpoint of this moment; every rank calls it, while none is being written."""
        assert self._write is None
        rank, world = dist.get_rank(), dist.get_world_size()
        name = from_first_rank(lambda: new_name(state.next_step, world))
        parts = _copy_to_cpu(checkpoint_parts(self._engine))
        if rank == 0:
            content = asdict(state) | {"lineage": [*state.lineage, name], "missed": []}
            parts[STATE] = json.dumps(content | {"world": world}).encode()
        rows = self._ledger.take()
        failure = self._thread.submit(failure_of, lambda: self._write_files(parts, name, rank, rows))
        self._write = _Write(name, rows, failure, time.perf_counter(), state.next_step)

    def finish(self, state: RunState, wait: bool = True) -> SaveResult | None:
        """Commits the checkpoint being written; every rank calls it.

        None if there is none. A failed save leaves earlier checkpoints unchanged.

        Without `wait` every rank must have `is_written`. The first such call starts the commit in the first rank's thread,
        while training continues, and returns None; the next call returns the result.

        Raises:
            TrainingError: the third save in a row has failed, on any rank.
            ArtifactError: another run has taken over the folder.
        """
        if (write := self._write) is None:
            return None
        if write.commit is None:
            if failure := first_failure(write.failure.result()):
                return self._abandon_save(write, failure, state)
            world = dist.get_world_size()
            write.commit = self._thread.submit(lambda: self._commit(write.name, world) if dist.get_rank() == 0 else _Commit())
            if not wait:
                return None
        commit = from_first_rank(write.commit.result)
        if commit.taken_over:
            raise ArtifactError(commit.taken_over, self._store.uri)
        if commit.failure:
            return self._abandon_save(write, commit.failure, state)
        self._write, state.missed = None, []
        state.lineage.append(write.name)
        seconds = round(time.perf_counter() - write.began, 3)
        return SaveResult(name=write.name, step=write.step, seconds=seconds, failure="", prune_failure=commit.prune_failure)

    def forget(self) -> None:
        """Drops the ledger's rows since the last checkpoint: the run has rolled back to it."""
        assert self._write is None
        self._ledger.take()

    def _commit(self, name: str, world: int) -> _Commit:
        """Checks the lease, commits and removes older checkpoints, in this order."""
        if taken_over := self._taken_over():
            return _Commit(taken_over=taken_over)
        if failure := failure_of(lambda: self._store.commit(name, world)):
            return _Commit(failure=failure)
        return _Commit(prune_failure=failure_of(lambda: self._store.prune(name, self._reading())))

    def _taken_over(self) -> str:
        """Why the lease forbids committing. If the storage does not answer, the commit will report it."""
        try:
            self._store.check_lease()
        except ArtifactError as error:
            return error.what
        except OSError:
            return ""
        return ""

    def _abandon_save(self, write: _Write, failure: str, state: RunState) -> SaveResult:
        """Gives up a save: keeps its ledger rows, removes its files; TrainingError after too many failures in a row."""
        self._write = None
        self._ledger.give_back(write.rows)
        failure_on_any_rank(lambda: self._drop(write.name) if dist.get_rank() == 0 else None)
        state.missed.append(failure)
        if len(state.missed) > MAX_MISSED:
            raise TrainingError(
                f"{len(state.missed)} checkpoints in a row could not be saved ({failure}).",
                self._store.uri,
                "Make room there or give another output=; the last saved one is intact, and the same command resumes it.",
            )
        seconds = round(time.perf_counter() - write.began, 3)
        return SaveResult(name=write.name, step=write.step, seconds=seconds, failure=failure)

    def _write_files(self, parts: dict[str, Any], name: str, rank: int, rows: list[pa.Table]) -> None:
        """Writes this rank's files of a checkpoint and its ledger rows to storage; runs in the writer's thread."""
        self._store.check_room(sum(map(_size, _leaves(parts))))
        with self._store.part(name, rank) as folder:
            for path, content in parts.items():
                target = os.path.join(folder, path)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if isinstance(content, bytes):
                    with open(target, "wb") as file:
                        file.write(content)
                else:
                    torch.save(content, target)
        self._ledger.write(name, rows)

    def _drop(self, name: str) -> None:
        self._store.drop(name)
        self._ledger.drop(name)


def _copy_to_cpu(content: Any, copies: dict[Any, torch.Tensor] | None = None) -> Any:
    """A copy in the host's memory, so that training continues while it is written.

    Tensors that share memory, as tied weights do, share it in the copy; a view into a large buffer is copied without the rest.
    """
    copies = {} if copies is None else copies
    if isinstance(content, torch.Tensor):
        key = (content.untyped_storage().data_ptr(), content.storage_offset(), content.shape, content.stride(), content.dtype)
        if key not in copies:
            copies[key] = content.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(content, dict):
        return type(content)((name, _copy_to_cpu(value, copies)) for name, value in content.items())
    if isinstance(content, list | tuple) and not hasattr(content, "_fields"):
        return type(content)(_copy_to_cpu(value, copies) for value in content)
    return content


def _leaves(content: Any) -> Iterator[Any]:
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else None
    if values is None:
        yield content
    else:
        for value in values:
            yield from _leaves(value)


def _size(leaf: Any) -> int:
    return leaf.nbytes if isinstance(leaf, torch.Tensor) else len(leaf) if isinstance(leaf, bytes) else 0
