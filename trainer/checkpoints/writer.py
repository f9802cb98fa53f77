"""Saves checkpoints beside the training, decided on by all ranks together."""

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
from trainer.checkpoints.restore import TAG, RunState
from trainer.checkpoints.store import STATE, Store
from trainer.collectives import failure_of, failure_on_any_rank, first_failure, from_first_rank
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import new_name

_NOWHERE = "nowhere"
"""The folder that DeepSpeed is told."""
MISSED = 2
"""Saves in a row that may fail before the run gives up."""


@dataclass(slots=True)
class _Write:
    """A save that a thread is at."""

    name: str
    rows: list[pa.Table]
    """Of the ledger; they go back there if the save fails."""
    said: Future[str]
    """What went wrong on this rank; empty if nothing did."""
    began: float
    step: int
    ended: "Future[_Commit] | None" = None
    """Once all ranks have written their parts."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """What came of a commit; empty where all is well."""

    taken: str = ""
    """Why the folder is another run's."""
    wrong: str = ""
    left: str = ""


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
    """Why older checkpoints could not be removed, which the next save tries again; empty if all is well."""


class CheckpointWriter:
    """Saves checkpoints beside the training. The state is copied at once and written by a thread; it counts when every rank
    has written its part, which the ranks find out together."""

    def __init__(self, engine: Any, store: Store, ledger: Ledger, reading: Callable[[], Collection[str]] = tuple) -> None:
        """`reading` names checkpoints that somebody reads, so that they are not removed now; the first rank's counts."""
        self._engine, self._store, self._ledger, self._reading = engine, store, ledger, reading
        self._write: _Write | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="save")

    @property
    def is_written(self) -> bool:
        """Whether this rank has written its part, or then its commit, so that `finish` would not wait for it."""
        return self._write is not None and (self._write.ended or self._write.said).done()

    def begin(self, state: RunState) -> None:
        """A checkpoint of this moment; every rank calls it, with none under way."""
        assert self._write is None
        rank, world = dist.get_rank(), dist.get_world_size()
        name = from_first_rank(lambda: new_name(state.next_step, world))
        parts = _copied(_parts(self._engine))
        if rank == 0:
            kept = asdict(state) | {"lineage": [*state.lineage, name], "missed": []}
            parts[STATE] = json.dumps(kept | {"world": world}).encode()
        rows = self._ledger.take()
        under_way = self._writer.submit(failure_of, lambda: self._put(parts, name, rank, rows))
        self._write = _Write(name, rows, under_way, time.perf_counter(), state.next_step)

    def finish(self, state: RunState, wait: bool = True) -> SaveResult | None:
        """Makes the save under way count, if there is one; every rank calls it. None if there was none. One that fails leaves
        the earlier ones as they are.

        Without `wait` every rank must have `written`. The first such call begins the commit, which the first rank's thread
        makes behind the next steps, and answers None; the next call answers as usual.

        Raises:
            TrainingError: it is the third in a row that fails, on any rank.
            ArtifactError: another run has taken over the folder.
        """
        if (write := self._write) is None:
            return None
        if write.ended is None:
            if wrong := first_failure(write.said.result()):
                return self._failed(write, wrong, state)
            world = dist.get_world_size()
            write.ended = self._writer.submit(lambda: self._commit(write.name, world) if dist.get_rank() == 0 else _Commit())
            if not wait:
                return None
        ended = from_first_rank(write.ended.result)
        if ended.taken:
            raise ArtifactError(ended.taken, self._store.uri)
        if ended.wrong:
            return self._failed(write, ended.wrong, state)
        self._write, state.missed = None, []
        state.lineage.append(write.name)
        seconds = round(time.perf_counter() - write.began, 3)
        return SaveResult(name=write.name, step=write.step, seconds=seconds, failure="", prune_failure=ended.left)

    def _commit(self, name: str, world: int) -> _Commit:
        """Checks the lease, commits and removes older checkpoints, in this order."""
        if taken := self._taken_over():
            return _Commit(taken=taken)
        if wrong := failure_of(lambda: self._store.commit(name, world)):
            return _Commit(wrong=wrong)
        return _Commit(left=failure_of(lambda: self._store.prune(name, self._reading())))

    def _failed(self, write: _Write, wrong: str, state: RunState) -> SaveResult:
        self._write = None
        self._ledger.give_back(write.rows)
        failure_on_any_rank(lambda: self._drop(write.name) if dist.get_rank() == 0 else None)
        state.missed.append(wrong)
        if len(state.missed) > MISSED:
            raise TrainingError(
                f"{len(state.missed)} checkpoints in a row could not be saved ({wrong}).",
                self._store.uri,
                "Make room there or give another output=; the last one that was saved is intact, and the same command goes on.",
            )
        seconds = round(time.perf_counter() - write.began, 3)
        return SaveResult(name=write.name, step=write.step, seconds=seconds, failure=wrong)

    def _taken_over(self) -> str:
        """What the lease says against a commit. Storage that does not answer will say so at the commit."""
        try:
            self._store.check_lease()
        except ArtifactError as error:
            return error.what
        except OSError:
            return ""
        return ""

    def forget(self) -> None:
        """The rows since the last checkpoint were not trained on after all: the run has gone back to it."""
        assert self._write is None
        self._ledger.take()

    def _put(self, parts: dict[str, Any], name: str, rank: int, rows: list[pa.Table]) -> None:
        self._store.check_room(sum(map(_bytes, _leaves(parts))))
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


def _parts(engine: Any) -> dict[str, Any]:
    """What DeepSpeed would write on this rank, by path: nothing is written yet.

    Its `save_checkpoint` waits for the other ranks between its writes, so that a disk that is full on one of them would
    leave the others waiting for good; and a worker that is killed while it waits would leave a folder behind.
    """
    parts: dict[str, Any] = {}
    writer = engine.checkpoint_engine
    stand_ins: dict[tuple[Any, str], Callable[..., None]] = {
        (writer, "save"): lambda state_dict, path: parts.update({os.path.relpath(path, _NOWHERE): state_dict}),
        (writer, "makedirs"): lambda path, exist_ok=False: None,
        (engine, "_copy_recovery_script"): lambda path: None,
    }
    for (owner, name), stand_in in stand_ins.items():
        setattr(owner, name, stand_in)
    try:
        engine.save_checkpoint(_NOWHERE, tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    finally:
        for owner, name in stand_ins:
            delattr(owner, name)
    # DeepSpeed keeps the second names of tied weights.
    trained = engine.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, weight in trained if not weight.requires_grad}
    for state in parts.values():
        for name in frozen & set(state.get("module", {})):
            del state["module"][name]
    return parts


def _copied(content: Any, made: dict[Any, torch.Tensor] | None = None) -> Any:
    """The same in memory of its own, on the CPU: training goes on while it is written. Tensors that share memory, as tied
    weights do, share it in the copy; one that is a part of a large buffer is copied without the rest."""
    made = {} if made is None else made
    if isinstance(content, torch.Tensor):
        key = (content.untyped_storage().data_ptr(), content.storage_offset(), content.shape, content.stride(), content.dtype)
        if key not in made:
            made[key] = content.detach().to("cpu", copy=True)
        return made[key]
    if isinstance(content, dict):
        return type(content)((name, _copied(value, made)) for name, value in content.items())
    if isinstance(content, list | tuple) and not hasattr(content, "_fields"):
        return type(content)(_copied(value, made) for value in content)
    return content


def _leaves(content: Any) -> Iterator[Any]:
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else None
    if values is None:
        yield content
    else:
        for value in values:
            yield from _leaves(value)


def _bytes(leaf: Any) -> int:
    return leaf.nbytes if isinstance(leaf, torch.Tensor) else len(leaf) if isinstance(leaf, bytes) else 0
