"""Checkpoints: DeepSpeed's files, the state of the run and a hash of every file.

Each rank hashes what it wrote into a manifest of its own. Nothing is loaded before its hash matches: DeepSpeed's files
are pickles, and a torn file must not be trained from.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipeline.errors import CorruptError

_TAG = "ds"


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


def save(engine: Any, state: RunState, folder: str, rank: int, world: int) -> None:
    """Writes this rank's part of a checkpoint into `folder`; every rank calls it."""
    before = set(_files(folder))
    engine.save_checkpoint(folder, tag=_TAG, save_latest=False)
    if rank == 0:
        with open(os.path.join(folder, "state.json"), "w", encoding="utf-8") as file:
            json.dump(asdict(state) | {"world": world}, file)
    hashes = {name: _sha256(os.path.join(folder, name)) for name in _files(folder) if name not in before}
    with open(os.path.join(folder, f"manifest-{rank:05d}.json"), "w", encoding="utf-8") as file:
        json.dump(hashes, file, indent=1)


def load(engine: Any, folder: str, world: int, identity: str) -> RunState:
    """Verifies the checkpoint, restores the engine and returns the run's state.

    Raises:
        CorruptError: a file is missing or changed, or the checkpoint is of another run or number of workers.
    """
    verify(folder, world)
    with open(os.path.join(folder, "state.json"), encoding="utf-8") as file:
        content = json.load(file)
    if content.pop("world") != world:
        raise CorruptError("written by another number of workers.", folder, "Start again with as many workers.")
    if content["identity"] != identity:
        raise CorruptError("the checkpoint of another run.", folder, "Remove the folder or choose another output=.")
    engine.load_checkpoint(folder, tag=_TAG)
    return RunState(**content)


def verify(folder: str, world: int) -> None:
    """Compares every file with its hash."""
    for rank in range(world):
        path = os.path.join(folder, f"manifest-{rank:05d}.json")
        if not os.path.exists(path):
            raise CorruptError(f"the part of rank {rank} is missing.", folder, "Start from an earlier checkpoint.")
        with open(path, encoding="utf-8") as file:
            hashes = json.load(file)
        for name, digest in hashes.items():
            full = os.path.join(folder, name)
            if not os.path.exists(full) or _sha256(full) != digest:
                raise CorruptError("missing or changed since it was written.", full, "Start from an earlier checkpoint.")


def _files(folder: str) -> list[str]:
    found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(path, folder) for path in found)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
