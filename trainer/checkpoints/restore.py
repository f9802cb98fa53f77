"""Where a run goes on: the state that its checkpoints hold, loaded by all ranks together.

DeepSpeed's files are pickles, and a torn file must not be trained from: nothing is loaded before its hash matches.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from data_pipeline.artifacts import storage
from data_pipeline.errors import CorruptError, ScionError, TrainingError, reason
from trainer.checkpoints.node_copy import node_copy, reads, reads_all
from trainer.checkpoints.store import DRAFT_PREFIX, Store
from trainer.collectives import failure_on_any_rank, first_failure, from_first_rank
from trainer.deepspeed_bridge import universal_checkpoint
from trainer.deepspeed_bridge.plain_path import plain_path
from trainer.deepspeed_bridge.weight_average import KEY
from trainer.ledger.step_name import step_of
from trainer.models.freezing import is_fully_trained

TAG = "ds"


@dataclass(frozen=True, slots=True)
class Skip:
    """Planned steps [first, last) that the run has left out, and why."""

    first: int
    last: int
    why: str
    counts: bool = True
    """Toward giving up: not any more where the settings that the error advises to change were changed since."""


@dataclass(slots=True)
class RunState:
    """All that a run has to know to go on; the same on every rank."""

    next_step: int = 0
    identity: str = ""
    """Hash of the plan and the settings that cannot change: a checkpoint of another run is not continued."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those that can (`changes.adjustable_settings`), as the run has them now."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What was changed and at which step (`changes.adopt_settings`), in turn."""
    evaluations: dict[str, Any] = field(default_factory=dict)
    """Step (as text) to bits per byte, or an embedder's retrieval both ways."""
    lineage: list[str] = field(default_factory=list)
    """The checkpoints that this state came through, which are also the names of the ledger's segments."""
    skips: list[Skip] = field(default_factory=list)
    """In order of the plan."""
    recent: list[float] = field(default_factory=list)
    """Losses of the last steps, from which a spike is told."""
    refused: int = 0
    """Steps in a row whose update was left out, up to now."""
    missed: list[str] = field(default_factory=list)
    """Why the last saves failed, since one succeeded."""

    @property
    def skipped(self) -> tuple[tuple[int, int], ...]:
        return tuple((skip.first, skip.last) for skip in self.skips)


def restore(engine: Any, store: Store, identity: str, at_most: int | None = None) -> RunState:
    """Loads the newest checkpoint whose files are what was written, and marks those that are not; every rank calls it. With
    `at_most` the newest that is not after that step, or else the earliest.

    Raises:
        CorruptError: there were checkpoints and none is intact, or the newest is of another run.
        OSError: the storage fails, which says nothing against a checkpoint.
    """
    passed: dict[str, str] = {}
    while name := from_first_rank(lambda: next((one for one in _in_turn(store, at_most) if one not in passed), "")):
        wrong = _check(store, name)
        if not wrong:
            return _load(engine, store, name, identity)
        passed[name] = wrong
        # Where the mark cannot be written, this attempt passes over the checkpoint all the same, and the next checks it again.
        failure_on_any_rank(lambda name=name, wrong=wrong: store.mark_bad(name, wrong) if dist.get_rank() == 0 else None)  # type: ignore[misc]
    if passed:
        raise CorruptError(
            f"no checkpoint is intact ({next(iter(passed.values()))}).",
            store.uri,
            "Remove the folder to start from the beginning.",
        )
    return RunState(identity=identity)


def _in_turn(store: Store, at_most: int | None) -> list[str]:
    """The checkpoints in the order in which they are tried."""
    usable = store.usable()
    later = [] if at_most is None else [name for name in usable if step_of(name) > at_most]
    return usable[len(later) :] + later[::-1]


def _check(store: Store, name: str) -> str:
    """Why a checkpoint is bad, on every rank alike; empty if it is intact.

    Raises:
        OSError: a file could not be read, on any rank.
    """
    rank, wrong, unread = dist.get_rank(), "", ""
    try:
        store.verify(name, rank, dist.get_world_size())
    except CorruptError as error:
        wrong = f"rank {rank}: {error}"
    except OSError as error:
        unread = f"rank {rank}: {reason(error)}"
    wrong, unread = first_failure(wrong), first_failure(unread)
    if unread and not wrong:
        raise OSError(
            f"the checkpoint {storage.join(store.uri, name)} could not be read ({unread}). It was left as it is; remove it "
            "to go on from the one before."
        )
    return wrong


def _load(engine: Any, store: Store, name: str, identity: str) -> RunState:
    content, uri = store.state(name), storage.join(store.uri, name)
    if content["identity"] != identity:
        raise CorruptError("the checkpoint of another run.", uri, "Remove the folder or choose another output=.")
    stage = content["settings"].get("zero_stage", engine.zero_optimization_stage())
    if content.pop("world") == dist.get_world_size() and (stage == 3) == (engine.zero_optimization_stage() == 3):
        with node_copy(uri, reads) as copy, plain_path(copy) as folder:
            engine.load_checkpoint(folder, tag=TAG, load_module_strict=is_fully_trained(engine.module))
    else:
        _load_universal(engine, store, name)
    assert step_of(name) == content["next_step"]
    return RunState(**content | {"skips": [Skip(**skip) for skip in content["skips"]]})


def _said_by_kind(do: Callable[[], None]) -> tuple[str, str]:
    """What went wrong with a storage, which may be gone at the next attempt, and what else; empty if all went well."""
    try:
        do()
    except OSError as error:
        return reason(error), ""
    except (RuntimeError, ScionError) as error:
        return "", str(error) if isinstance(error, ScionError) else reason(error)
    return "", ""


def _load_universal(engine: Any, store: Store, name: str) -> None:
    """Loads what another number of ranks wrote, or another ZeRO stage: the first rank fetches and converts it, in a folder that
    no checkpoint shares, and all load. Its name begins as those of parts do, so that the next commit removes what a kill left
    behind."""
    if any(KEY in group for group in engine.optimizer.param_groups):
        raise TrainingError(
            "the average of the weights (train.ema) cannot be divided among another number of workers or another ZeRO stage.",
            name,
            "Go on with as many workers and the stage of before.",
        )
    if any(group["use_muon"] for group in engine.optimizer.param_groups):
        raise TrainingError(
            "Muon's state cannot be divided among another number of workers.", name, "Go on with as many workers as before."
        )
    uri = storage.join(store.uri, from_first_rank(lambda: f"{DRAFT_PREFIX}universal-{time.time_ns():x}"))

    def convert() -> None:
        with store.local(name) as folder, storage.local_output(uri) as made:
            universal_checkpoint.convert(os.path.join(folder, TAG), os.path.join(made, TAG), engine.zero_optimization_stage())

    unread, wrong = from_first_rank(lambda: _said_by_kind(convert))
    what = "the checkpoint could not be converted for these workers and this ZeRO stage"
    if unread:
        raise OSError(f"{what} ({unread}). It was left as it is.")
    if wrong:
        raise TrainingError(f"{what} ({wrong}).", name)
    with node_copy(uri, reads_all) as made:
        universal_checkpoint.load(engine, made, TAG)
    dist.barrier()
    failure_on_any_rank(lambda: storage.remove(uri) if dist.get_rank() == 0 else None)
