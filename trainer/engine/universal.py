"""A checkpoint that was written by one number of ranks, for an engine of another: DeepSpeed's Universal Checkpoint.

ZeRO cuts the master weights and the optimizer's moments into as many parts as there are ranks, and its own load takes back
only as many. Its converter joins the parts to whole tensors, one folder a parameter, which every rank cuts anew.
"""

import argparse
import contextlib
import io
import os
from typing import Any

import torch

from data_pipeline.errors import CorruptError, ScionError, TrainingError, reason
from trainer.engine.freezing import all_trained
from trainer.engine.setup import before_deepspeed

_TENSORS = ("fp32", "exp_avg", "exp_avg_sq")


def convert(native: str, universal: str) -> None:
    """Joins DeepSpeed's files of one checkpoint, written by any number of ranks, to a universal checkpoint.

    Needs no process group. `universal` is a new folder, and nothing is written elsewhere; one that a kill left behind
    without its model states, which come last, does not load.

    Raises:
        CorruptError: the files of a rank are missing, or cannot be read.
        TrainingError: it holds something that a universal checkpoint would lose.
    """
    before_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    # The converter writes a file beside its output folder, hence a folder within.
    made = os.path.join(universal, "made")
    os.makedirs(made)
    settings = argparse.Namespace(
        input_folder=native, output_folder=made, inject_missing_state=True, strict=True, keep_temp_folder=False,
        num_extract_workers=1, num_merge_workers=1,
    )  # fmt: skip
    try:
        names = _expected(native)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(settings)
        _check_whole(made, names)
    except (ScionError, OSError):  # such as a full disk: the files are not to blame
        raise
    except Exception as error:  # whatever a pickle, an assertion or a shape that does not fit raises
        raise CorruptError(f"cannot be converted to another number of workers: {reason(error)}", native) from error
    for name in sorted(os.listdir(made), key=lambda name: name.endswith("_model_states.pt")):
        os.rename(os.path.join(made, name), os.path.join(universal, name))
    os.rmdir(made)


def _expected(native: str) -> set[str]:
    """Names of the trained parameters. The converter takes the number of ranks from the files that it finds and the value of
    a parameter without moments from the module, so that it would lose those of a missing rank without a word."""
    files = os.listdir(native)
    models = sorted(name for name in files if name.endswith("_model_states.pt"))
    if not models:
        raise CorruptError("the module's file is missing.", native)
    state = torch.load(os.path.join(native, models[0]), map_location="cpu", weights_only=False, mmap=True)
    world = state["dp_world_size"]
    if sum(name.endswith("_optim_states.pt") for name in files) != world or len(models) not in (1, world):
        raise CorruptError(f"written by {world} ranks, but not all their files are there.", native)
    trained = {name for group in state["param_shapes"] for name in group}
    if others := set(state["module"]) - trained - set(state["shared_params"]):
        raise TrainingError(
            f"the number of workers cannot change where the model has what is not trained ({min(others)}).",
            native,
            "Go on with as many workers as before.",
        )
    return trained


def _check_whole(made: str, names: set[str]) -> None:
    for name in names:
        for tensor in _TENSORS:
            if not os.path.exists(os.path.join(made, "zero", name, f"{tensor}.pt")):
                raise CorruptError(f"{tensor} of {name} is missing after the conversion.", made)


def load(engine: Any, folder: str, tag: str) -> None:
    """Loads the universal checkpoint `folder/tag` into an engine of any number of ranks; every rank calls it.

    Raises:
        CorruptError: there is none that is whole.
    """
    made = os.path.join(folder, tag)
    if not os.path.isdir(made) or not any(name.endswith("_model_states.pt") for name in os.listdir(made)):
        raise CorruptError("no universal checkpoint that is whole.", made)
    config = engine._config
    config.load_universal_checkpoint = True
    try:
        engine.load_checkpoint(folder, tag=tag, load_module_strict=all_trained(engine.module))
    finally:
        config.load_universal_checkpoint = False  # or it would take DeepSpeed's own files for universal ones later
    _mend(engine.optimizer.optimizer, made)


def _mend(optimizer: torch.optim.Optimizer, made: str) -> None:
    """Under ZeRO-3, DeepSpeed gives the settings of the first parameter group, such as its weight decay, to all of them. And
    it gives all the same tensor as step counter, which each then counts up: Adam's bias correction would be of a step far
    ahead. Both are done again here, under any stage; a fused optimizer, moreover, wants its counter on the device."""
    path = os.path.join(made, "zero", "optimizer_state.pt")
    # Under ZeRO-3 the file holds all that rank 0 had; mapped, it is not read.
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["param_groups"]
    for group, known in zip(optimizer.param_groups, saved, strict=True):
        group.update({key: value for key, value in known.items() if key != "params"})
    on_device = optimizer.param_groups[0].get("fused")
    for state in optimizer.state.values():
        state["step"] = state["step"].to(state["exp_avg"].device if on_device else "cpu", copy=True)
