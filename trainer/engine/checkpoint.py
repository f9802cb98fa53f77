"""What a run saves and how it goes on: DeepSpeed's files and the state of the run, decided on by all ranks together.

DeepSpeed's files are pickles, and a torn file must not be trained from: nothing is loaded before its hash matches.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline import storage
from data_pipeline.errors import CorruptError, ScionError, TrainingError, reason
from trainer.engine import universal
from trainer.engine.store import PART, Store, new_name, step_of

_TAG, _STATE = "ds", "state.json"
MISSED = 2
"""Saves in a row that may fail before the run gives up."""


@dataclass(slots=True)
class RunState:
    """All that a run has to know to go on; the same on every rank."""

    next_step: int = 0
    identity: str = ""
    """Hash of the plan and the settings: a checkpoint of another run is not continued."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a step."""
    evaluations: dict[str, float] = field(default_factory=dict)
    """Step (as text) to bits per byte."""
    missed: list[str] = field(default_factory=list)
    """Why the last saves failed, since one succeeded."""


def save(engine: Any, state: RunState, store: Store) -> None:
    """A checkpoint of this moment; every rank calls it. One that fails leaves the earlier ones as they are.

    Raises:
        TrainingError: it is the third in a row that fails, on any rank.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    name = _from_first(lambda: new_name(state.next_step, world))
    parts = _parts(engine)
    if rank == 0:
        parts[_STATE] = asdict(state) | {"world": world}
    wrong = _together(lambda: _write(parts, store, name, rank))
    wrong = wrong or _together(lambda: store.commit(name, world) if rank == 0 else None)
    if not wrong:
        state.missed = []
        return
    _together(lambda: store.drop(name) if rank == 0 else None)
    state.missed.append(wrong)
    if len(state.missed) > MISSED:
        raise TrainingError(
            f"{len(state.missed)} checkpoints in a row could not be saved ({wrong}).",
            store.uri,
            "Make room there or give another output=; the last one that was saved is intact, and the same command goes on.",
        )


def restore(engine: Any, store: Store, identity: str) -> RunState:
    """Loads the newest checkpoint whose files are what was written, and marks those that are not; every rank calls it.

    Raises:
        CorruptError: there were checkpoints and none is intact, or the newest is of another run.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    passed: list[str] = []
    while name := _from_first(lambda: next(iter(store.usable()), "")):
        wrong = _together(lambda name=name: store.checked(name, rank, world))  # type: ignore[misc]
        if not wrong:
            return _load(engine, store, name, world, identity)
        passed.append(wrong)
        _together(lambda name=name, wrong=wrong: store.mark_bad(name, wrong) if rank == 0 else None)  # type: ignore[misc]
    if passed:
        raise CorruptError(
            f"no checkpoint is intact ({passed[0]}).", store.uri, "Remove the folder to start from the beginning."
        )
    return RunState(identity=identity)


def _parts(engine: Any) -> dict[str, Any]:
    """What DeepSpeed would write on this rank, by path: nothing is written yet.

    Its `save_checkpoint` waits for the other ranks between its writes, so that a disk that is full on one of them would
    leave the others waiting for good.
    """
    parts: dict[str, Any] = {}
    writer, written = engine.checkpoint_engine, engine.checkpoint_engine.save
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        writer.save = lambda state_dict, path: parts.update({os.path.relpath(path, folder): state_dict})
        try:
            engine.save_checkpoint(folder, tag=_TAG, save_latest=False)
        finally:
            writer.save = written
    return parts


def _write(parts: dict[str, Any], store: Store, name: str, rank: int) -> None:
    with store.part(name, rank) as folder:
        for path, content in parts.items():
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if path == _STATE:
                with open(target, "w", encoding="utf-8") as file:
                    json.dump(content, file)
            else:
                torch.save(content, target)


def _load(engine: Any, store: Store, name: str, world: int, identity: str) -> RunState:
    with store.local(name) as folder:
        with open(os.path.join(folder, _STATE), encoding="utf-8") as file:
            content = json.load(file)
        if content["identity"] != identity:
            raise CorruptError("the checkpoint of another run.", folder, "Remove the folder or choose another output=.")
        if content.pop("world") == world:
            engine.load_checkpoint(folder, tag=_TAG)
        else:
            _load_universal(engine, store, folder)
    assert step_of(name) == content["next_step"]
    return RunState(**content)


def _load_universal(engine: Any, store: Store, folder: str) -> None:
    """Loads what another number of ranks wrote: the first rank converts it, in a folder that no checkpoint shares, and all
    load. Its name begins as those of parts do, so that the next commit removes what a kill left behind."""
    uri = storage.join(store.uri, _from_first(lambda: f"{PART}universal-{time.time_ns():x}"))

    def convert() -> None:
        with storage.local_output(uri) as made:
            universal.convert(os.path.join(folder, _TAG), os.path.join(made, _TAG))

    wrong = _together(lambda: convert() if dist.get_rank() == 0 else None)
    if wrong:
        raise TrainingError(f"the checkpoint could not be converted to another number of workers ({wrong}).", folder)
    with storage.local_copy(uri) as made:
        universal.load(engine, made, _TAG)
    dist.barrier()
    _together(lambda: storage.remove(uri) if dist.get_rank() == 0 else None)


def _from_first(make: Callable[[], str]) -> str:
    """What the first rank makes, on every rank."""
    made = [make() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(made)
    return made[0]


def _together(do: Callable[[], None]) -> str:
    """Does something on every rank and answers, on every rank alike, what went wrong on the first on which it did; empty if
    all went well. A full disk on one rank must not leave the others waiting."""
    said = ""
    try:
        do()
    except (OSError, RuntimeError, ScionError) as error:  # torch.save wraps what the disk says in a RuntimeError
        said = f"rank {dist.get_rank()}: {error if isinstance(error, ScionError) else reason(error)}"
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, said)
    return next(filter(None, found), "")
