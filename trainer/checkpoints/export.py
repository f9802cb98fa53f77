"""A model folder out of a checkpoint of a run: in one process, without Ray, without a GPU."""

import contextlib
import io
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from data_pipeline.artifacts import artifact, lease, storage
from data_pipeline.artifacts.artifact import Artifact, Spec
from data_pipeline.artifacts.lease import Lease
from data_pipeline.errors import ArtifactError, CorruptError, ScionError, reason
from trainer.checkpoints.restore import TAG
from trainer.checkpoints.store import Store
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.plain_path import plain_path
from trainer.deepspeed_bridge.weight_average import KEY
from trainer.embedder import EmbedderSpec
from trainer.models.adapters import Lora
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask
from trainer.tasks.task import Task

TASK = "task.json"
"""Beside the checkpoints of a run: what it trains, as `read_task` reads it."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def write_task(
    store: Store, task: LanguageModelTask | ContrastiveTask, frozen: Collection[str] = (), lora: Lora | None = None
) -> None:
    kind = "model" if isinstance(task, LanguageModelTask) else "embedder"
    task_settings = {name: value for name, value in asdict(task).items() if name != "objective"}
    content: dict[str, Any] = {"kind": kind, "task": task_settings, "frozen": list(frozen)}
    content["lora"] = None if lora is None else asdict(lora)
    storage.write_bytes(storage.join(store.uri, TASK), json.dumps(content).encode())


def read_task(store: Store) -> tuple[str, Task, list[str], Lora | None]:
    """The kind of folder that a run makes, its task, what is frozen in it, and its adapters.

    Raises:
        ArtifactError: an earlier version of Scion began the run.
    """
    path = storage.join(store.uri, TASK)
    if not storage.exists(path):
        raise ArtifactError("the checkpoints do not say what they are of.", path, "Go on with the run, which writes it.")
    content = json.loads(storage.read_bytes(path))
    settings: dict[str, Any] = content["task"]
    given = content.get("lora")
    lora = None if given is None else Lora(**given | {"targets": tuple(given["targets"])})
    frozen: list[str] = content.get("frozen", [])
    if content["kind"] == "model":
        return "model", LanguageModelTask(**settings), frozen, lora
    spec = EmbedderSpec(**settings["spec"] | {"dimensions": tuple(settings["spec"]["dimensions"])})
    return "embedder", ContrastiveTask(model_uri=settings["model_uri"], spec=spec), frozen, lora


def weights_in(store: Store, name: str) -> dict[str, torch.Tensor]:
    """The optimizer's fp32 weights, or their averages (`TrainConfig.ema`), and the module's buffers, without what is frozen.
    They may be of any number of ranks and ZeRO stage.

    Raises:
        CorruptError: a file is missing, or not what was written.
        OSError: the storage fails.
    """
    store.verify(name)
    prepare_environment()
    from deepspeed.utils import zero_to_fp32

    with store.local(name) as copy, plain_path(copy) as folder, _averages_read(zero_to_fp32):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return dict(zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(folder, tag=TAG))
        except (ScionError, OSError):
            raise
        except Exception as error:  # whatever a pickle or a shape that does not fit raises
            raise CorruptError(f"the weights cannot be joined: {reason(error)}", os.path.join(copy, TAG)) from error


@contextlib.contextmanager
def _averages_read(joiner: Any) -> Iterator[None]:
    """While the block runs, DeepSpeed's `zero_to_fp32` joins the averages of `TrainConfig.ema` in place of the weights, where a
    checkpoint holds them."""
    read = joiner.parse_optim_states

    def averages(files: list[str], folder: str) -> tuple[Any, ...]:
        stage, world, groups, paddings = read(files, folder)
        for path, weights in zip(files, groups, strict=True):
            saved = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
            states = saved["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"]
            for number, state in states.items():
                if KEY in state:
                    weights[number] = state[KEY][: len(weights[number])]  # without what fills the groups up
        return stage, world, groups, paddings

    joiner.parse_optim_states = averages
    try:
        yield
    finally:
        joiner.parse_optim_states = read


def export(store: Store, name: str, uri: str, *, again: bool = False) -> Artifact:
    """Writes the model of checkpoint `name` to folder `uri`, which is there as a whole or not at all: on a local disk by
    rename; on an object store, and in a folder of another disk, because `artifact.json` comes last. One that is there already
    is kept. One process at a time writes there.

    Args:
        again: a folder of the same step of the same run is replaced, which then went back and made that step another time.

    Raises:
        ArtifactError: the folder holds something else, another process writes it, or the run does not say what it trains.
        CorruptError: the checkpoint is not intact.
        OSError: the storage fails.
    """
    with _held(uri) as held:
        _remove_drafts(uri)
        return _export(store, name, uri, again, held)


def remove_drafts(uri: str) -> None:
    """Removes what exports to folder `uri` that were killed left beside it.

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
    kind, task, frozen, lora = read_task(store)
    state = store.state(name)
    saved_in = state["settings"].get("export", "fp32")
    config = {"checkpoint": name, "step": state["next_step"], "export": saved_in}
    plan = Spec(uri=uri, kind=kind, config=config, inputs={"run": state["identity"]})
    again = again and _is_of_same_step(plan)
    found = artifact.find(plan, replace=again)
    if found is not None:
        return found
    artifact.has_unfinished_run(plan, lambda: True)  # a training, most likely this one, is no place for a model
    renamed = _can_be_renamed_to(uri)
    draft = f"{uri.rstrip('/')}.{secrets.token_hex(6)}.draft" if renamed else uri
    try:
        with store.reading(name), artifact.writing(replace(plan, uri=draft), replace=again, lease=held) as made:
            dtype = _DTYPES[saved_in]
            weights = weights_in(store, name)
            rounded = {key: one.to(dtype) if one.is_floating_point() else one for key, one in weights.items()}
            task.export(rounded, draft, frozen, lora)
            made.metrics = {"changes": state["changes"], "skips": state["skips"]}
        if renamed:
            storage.remove(uri)
            os.rename(storage.filesystem(draft)[1], storage.filesystem(uri)[1])
    finally:
        if renamed:
            storage.remove(draft)
    return artifact.read(uri, kind, "export")


def _can_be_renamed_to(uri: str) -> bool:
    """Whether a folder beside `uri` can take its place: not that of a link or a mount point, which stands for another disk."""
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
    """The process that `Exports` starts: `STORE CHECKPOINT FOLDER`. Its last line of stderr says what went wrong."""
    os.nice(19)
    # So that what is half written is removed.
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
