"""A model folder out of a checkpoint of a run: in one process, without Ray, without a GPU."""

import contextlib
import os
import re
import secrets
import signal
import sys
from dataclasses import replace

import torch

from data_pipeline.artifacts import artifact, lease, storage
from data_pipeline.artifacts.artifact import Artifact, Spec
from data_pipeline.artifacts.lease import Lease
from data_pipeline.errors import ScionError, reason
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import read_task
from trainer.deepspeed_bridge.fp32_state_dict import fp32_state_dict

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def checkpoint_weights(store: Store, name: str) -> dict[str, torch.Tensor]:
    """The fp32 weights in a checkpoint, as `fp32_state_dict`.

    Raises:
        CorruptError: a file is missing, or not what was written.
        OSError: the storage fails.
    """
    store.verify(name)
    with store.local_copy(name) as folder:
        return fp32_state_dict(folder)


def export(store: Store, name: str, uri: str, *, again: bool = False) -> Artifact:
    """Writes the model of checkpoint `name` to folder `uri`, whole or not at all; keeps one that is finished.

    On a local disk a rename makes it whole; on an object store, and on another disk, `artifact.json` comes last. One process at
    a time writes there.

    Args:
        again: replaces a folder of the same step of the same run: the run went back and made that step again.

    Raises:
        ArtifactError: the folder holds something else, another process writes it, or the run does not say what it trains.
        CorruptError: the checkpoint is not intact.
        OSError: the storage fails.
    """
    with _held(uri) as held:
        _remove_drafts(uri)
        return _export(store, name, uri, again, held)


def remove_drafts(uri: str) -> None:
    """Removes the drafts that killed exports to folder `uri` left beside it.

    Raises:
        ArtifactError: another process writes there.
        OSError: the storage fails.
    """
    with _held(uri):
        _remove_drafts(uri)


def _held(uri: str) -> contextlib.AbstractContextManager[Lease]:
    return lease.hold(f"{uri.rstrip('/')}.lease.json")


def _remove_drafts(uri: str) -> None:
    if not storage.is_local(uri):
        return
    home, name = os.path.split(storage.filesystem(uri)[1].rstrip("/"))
    drafts = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{12}}\.draft")
    for left in filter(drafts.fullmatch, os.listdir(home) if os.path.isdir(home) else []):
        storage.remove(os.path.join(home, left))


def _export(store: Store, name: str, uri: str, again: bool, held: Lease) -> Artifact:
    """Does the work of `export` while `held`, the lease of the folder, is held: checks, writes a draft, renames it."""
    trained = read_task(store)
    state = store.state(name)
    saved_in = state["settings"].get("export", "fp32")
    config = {"checkpoint": name, "step": state["next_step"], "export": saved_in}
    plan = Spec(uri=uri, kind=trained.kind, config=config, inputs={"run": state["identity"]})
    again = again and _is_of_same_step(plan)
    finished = artifact.find(plan, replace=again)
    if finished is not None:
        return finished
    artifact.has_unfinished_run(plan, lambda: True)  # a training, most likely this one, is no place for a model
    renamed = can_be_renamed_to(uri)
    draft = f"{uri.rstrip('/')}.{secrets.token_hex(6)}.draft" if renamed else uri
    try:
        with store.reading(name), artifact.writing(replace(plan, uri=draft), replace=again, lease=held) as output:
            dtype = _DTYPES[saved_in]
            weights = checkpoint_weights(store, name)
            rounded = {key: weight.to(dtype) if weight.is_floating_point() else weight for key, weight in weights.items()}
            trained.task.export(rounded, draft, trained.frozen, trained.lora)
            output.metrics = {"changes": state["changes"], "skips": state["skips"]}
        if renamed:
            storage.remove(uri)
            os.rename(storage.filesystem(draft)[1], storage.filesystem(uri)[1])
    finally:
        if renamed:
            storage.remove(draft)
    return artifact.read(uri, trained.kind, "export")


def can_be_renamed_to(uri: str) -> bool:
    """Whether a folder beside `uri` can take its place: not where it is a link or a mount point, on another disk."""
    if not storage.is_local(uri):
        return False
    path = storage.filesystem(uri)[1].rstrip("/")
    return not os.path.islink(path) and not os.path.ismount(path)


def _is_of_same_step(plan: Spec) -> bool:
    if not storage.exists(storage.join(plan.uri, artifact.FINISHED)):
        return False
    found = artifact.read(plan.uri, plan.kind, "export")
    return found.inputs == plan.inputs and found.config["step"] == plan.config["step"]


def main(arguments: list[str]) -> int:
    """The process that `ExportQueue` starts: `STORE CHECKPOINT FOLDER`. The last line of its stderr is the failure."""
    os.nice(19)
    # Unwinds, which removes the draft.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    uri, name, folder = arguments
    try:
        export(Store(uri, keep=3), name, folder, again=True)
    except (ScionError, OSError) as error:
        print(error.what if isinstance(error, ScionError) else reason(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
