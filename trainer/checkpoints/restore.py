"""Loads the newest intact checkpoint; all ranks together.

DeepSpeed's files are pickles, and training must not start from a torn file: nothing is loaded before its hash matches.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from data_pipeline.artifacts import storage
from data_pipeline.errors import CorruptError, ScionError, TrainingError, reason
from trainer.checkpoints.node_copy import node_copy, reads, reads_all
from trainer.checkpoints.state import RunState, Skip
from trainer.checkpoints.store import Store
from trainer.collectives import failure_on_any_rank, first_failure, from_first_rank
from trainer.deepspeed_bridge import universal_checkpoint
from trainer.deepspeed_bridge.checkpoint_parts import TAG
from trainer.deepspeed_bridge.plain_path import plain_path
from trainer.deepspeed_bridge.weight_average import KEY
from trainer.ledger.step_name import DRAFT_PREFIX, step_of
from trainer.models.freezing import is_fully_trained


def restore(engine: Any, store: Store, identity: str, at_most: int | None = None) -> RunState:
    """Loads the newest intact checkpoint into the engine and marks damaged ones; every rank calls it.

    Args:
        at_most: prefers the newest checkpoint not after this step, else the earliest.

    Raises:
        CorruptError: there are checkpoints and none is intact, or the newest is of another run.
        OSError: the storage fails, which says nothing against a checkpoint.
    """
    damaged: dict[str, str] = {}
    while name := from_first_rank(lambda: next((one for one in _candidates(store, at_most) if one not in damaged), "")):
        damage = _damage(store, name)
        if not damage:
            return _load(engine, store, name, identity)
        damaged[name] = damage
        # If the mark cannot be written, this attempt passes over the checkpoint all the same, and the next checks it again.
        failure_on_any_rank(lambda name=name, damage=damage: store.mark_bad(name, damage) if dist.get_rank() == 0 else None)  # type: ignore[misc]
    if damaged:
        raise CorruptError(
            f"no checkpoint is intact ({next(iter(damaged.values()))}).",
            store.uri,
            "Remove the folder to start from the beginning.",
        )
    return RunState(identity=identity)


def _candidates(store: Store, at_most: int | None) -> list[str]:
    """The checkpoints in the order in which to try them."""
    usable = store.usable()
    later = [] if at_most is None else [name for name in usable if step_of(name) > at_most]
    return usable[len(later) :] + later[::-1]


def _damage(store: Store, name: str) -> str:
    """Why a checkpoint is not intact, the same on every rank; empty if it is.

    Raises:
        OSError: a file could not be read, on any rank.
    """
    rank, damage, unreadable = dist.get_rank(), "", ""
    try:
        store.verify(name, rank, dist.get_world_size())
    except CorruptError as error:
        damage = f"rank {rank}: {error}"
    except OSError as error:
        unreadable = f"rank {rank}: {reason(error)}"
    damage, unreadable = first_failure(damage), first_failure(unreadable)
    if unreadable and not damage:
        raise OSError(
            f"the checkpoint {storage.join(store.uri, name)} could not be read ({unreadable}). It was not changed; remove it "
            "to resume from the one before."
        )
    return damage


def _load(engine: Any, store: Store, name: str, identity: str) -> RunState:
    """Loads a checkpoint, also of other workers or ZeRO stage, and returns the state; CorruptError for another run's."""
    content, uri = store.state(name), storage.join(store.uri, name)
    if content["identity"] != identity:
        raise CorruptError("the checkpoint of another run.", uri, "Remove the folder or choose another output=.")
    stage = content["settings"].get("zero_stage", engine.zero_optimization_stage())
    if content.pop("world") == dist.get_world_size() and (stage == 3) == (engine.zero_optimization_stage() == 3):
        with node_copy(uri, reads) as copy, plain_path(copy) as folder:
            engine.load_checkpoint(folder, tag=TAG, load_module_strict=is_fully_trained(engine.module))
    else:
        load_universal(engine, store, name)
    assert step_of(name) == content["next_step"]
    return RunState(**content | {"skips": [Skip(**skip) for skip in content["skips"]]})


def load_universal(engine: Any, store: Store, name: str) -> None:
    """Converts a checkpoint of another number of ranks or ZeRO stage to DeepSpeed's universal format, and loads it.

    The first rank fetches and converts it, in a folder of its own with the prefix of drafts, so that the next commit removes
    what a kill leaves behind.
    """
    _check_divisible(engine, name)
    uri = storage.join(store.uri, from_first_rank(lambda: f"{DRAFT_PREFIX}universal-{time.time_ns():x}"))

    def convert() -> None:
        with store.local_copy(name) as folder, storage.local_output(uri) as made:
            stage = engine.zero_optimization_stage()
            universal_checkpoint.convert(os.path.join(folder, TAG), os.path.join(made, TAG), stage)

    unreadable, failure = from_first_rank(lambda: _failures_by_kind(convert))
    what = "the checkpoint could not be converted for these workers and this ZeRO stage"
    if unreadable:
        raise OSError(f"{what} ({unreadable}). It was not changed.")
    if failure:
        raise TrainingError(f"{what} ({failure}).", name)
    with node_copy(uri, reads_all) as made:
        universal_checkpoint.load(engine, made, TAG)
    dist.barrier()
    failure_on_any_rank(lambda: storage.remove(uri) if dist.get_rank() == 0 else None)


def _check_divisible(engine: Any, name: str) -> None:
    """Checks that the optimizer's state can be partitioned anew.

    Raises:
        TrainingError: it holds averages, or Muon's momentum.
    """
    if any(KEY in group for group in engine.optimizer.param_groups):
        raise TrainingError(
            "the average of the weights (train.ema) cannot be divided among another number of workers or another ZeRO stage.",
            name,
            "Resume with as many workers as before and the same stage.",
        )
    if any(group["use_muon"] for group in engine.optimizer.param_groups):
        raise TrainingError(
            "Muon's state cannot be divided among another number of workers.", name, "Resume with as many workers as before."
        )


def _failures_by_kind(do: Callable[[], None]) -> tuple[str, str]:
    """Failures of the storage, which the next attempt may not meet, and other failures; both empty on success."""
    try:
        do()
    except OSError as error:
        return reason(error), ""
    except (RuntimeError, ScionError) as error:
        return "", str(error) if isinstance(error, ScionError) else reason(error)
    return "", ""
