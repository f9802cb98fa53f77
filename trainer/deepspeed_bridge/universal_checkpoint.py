"""DeepSpeed's Universal Checkpoint: resume with another number of ranks, or under another ZeRO stage.

ZeRO partitions the master weights and the optimizer's moments among the ranks, and its own load needs as many ranks. Its
converter joins the parts to whole tensors, one folder a parameter, and every rank takes its part anew. ZeRO-1 and 2 read the
other files in one form and ZeRO-3 in another; this module writes both.

Read from DeepSpeed 0.19.8, checkpoint/ds_to_universal.py and checkpoint/universal_checkpoint.py.
"""

import argparse
import contextlib
import io
import os
from typing import Any

import torch

from data_pipeline.errors import CorruptError, ScionError, TrainingError, reason
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.plain_path import plain_path
from trainer.models.freezing import is_fully_trained

_TENSORS = ("fp32", "exp_avg", "exp_avg_sq")
_MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""The file that an engine reads under ZeRO-1 or 2, and under ZeRO-3."""
_FULL = ("PytorchStreamWriter failed", "unexpected pos")
"""Parts of the messages of `torch.save` when a disk is full; it raises RuntimeErrors."""


def convert(native: str, universal: str, stage: int) -> None:
    """Converts DeepSpeed's files of one checkpoint, written by any number of ranks, to a universal checkpoint.

    Needs no process group. Writes in the new folder `universal` only. The model states come last, and a folder without them
    does not load.

    Args:
        stage: the ZeRO stage of the engines that will load it.

    Raises:
        CorruptError: the files of a rank are missing, or cannot be read.
        TrainingError: it holds a value that a universal checkpoint would lose.
    """
    prepare_environment()
    from deepspeed.checkpoint import ds_to_universal

    # The converter writes a file beside its output folder, so that goes one level down.
    output_folder = os.path.join(universal, "made")
    os.makedirs(output_folder)
    try:
        shapes = _checked_shapes(native)
        with (
            plain_path(native) as source,
            plain_path(universal) as target,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            ds_to_universal.main(_converter_arguments(source, os.path.join(target, os.path.basename(output_folder))))
        _check_whole(output_folder, set(shapes))
        _write_for_every_stage(output_folder, set(shapes))
        if stage < 3:
            _shape(output_folder, shapes)
    except (ScionError, OSError):  # such as a full disk: the files are intact
        raise
    except Exception as error:  # whatever a pickle, an assertion or a shape that does not fit raises
        if any(part in str(error) for part in _FULL):
            raise OSError(reason(error)) from error
        raise CorruptError(f"cannot be converted for other workers or another stage: {reason(error)}", native) from error
    for name in sorted(os.listdir(output_folder), key=lambda name: name.endswith("_model_states.pt")):
        os.rename(os.path.join(output_folder, name), os.path.join(universal, name))
    os.rmdir(output_folder)


def _converter_arguments(native: str, output_folder: str) -> argparse.Namespace:
    """The arguments of DeepSpeed's converter."""
    return argparse.Namespace(
        input_folder=native,
        output_folder=output_folder,
        inject_missing_state=True,
        strict=True,
        keep_temp_folder=False,
        num_extract_workers=1,
        num_merge_workers=1,
    )


def _checked_shapes(native: str) -> dict[str, torch.Size]:
    """Names and shapes of the trained parameters, after checking that a conversion would lose nothing.

    The converter counts the ranks by the files that it finds, and takes the value of a parameter without moments from the
    module: it would silently lose the parts of a missing rank.

    Raises:
        CorruptError: the files of a rank are missing.
        TrainingError: the module has untrained values.
    """
    files = os.listdir(native)
    models = sorted(name for name in files if name.endswith("_model_states.pt"))
    if not models:
        raise CorruptError("the module's file is missing.", native)
    state = torch.load(os.path.join(native, models[0]), map_location="cpu", weights_only=False, mmap=True)
    world = state["dp_world_size"]
    if sum(name.endswith("_optim_states.pt") for name in files) != world or len(models) not in (1, world):
        raise CorruptError(f"written by {world} ranks, but not all their files are there.", native)
    trained = {name: shape for group in state["param_shapes"] for name, shape in group.items()}
    if others := set(state["module"]) - set(trained) - set(state["shared_params"]):
        raise TrainingError(
            f"the number of workers cannot change where the model has untrained values ({min(others)}).",
            native,
            "Resume with as many workers as before.",
        )
    return trained


def _check_whole(output_folder: str, names: set[str]) -> None:
    for name in names:
        for tensor in _TENSORS:
            if not os.path.exists(os.path.join(output_folder, "zero", name, f"{tensor}.pt")):
                raise CorruptError(f"{tensor} of {name} is missing after the conversion.", output_folder)


def _write_for_every_stage(output_folder: str, names: set[str]) -> None:
    """Writes counters and settings in the forms of both stages.

    The optimizer's step once and for each parameter, its groups at the top and inside, the module's states under both names.
    Without weights, which are read from elsewhere.
    """
    path = os.path.join(output_folder, "zero", "optimizer_state.pt")
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    groups = saved["param_groups"]
    if "optimizer_state_dict" in saved:
        step = saved["optimizer_state_dict"]["state"][0]["step"]
    else:
        step = torch.load(os.path.join(output_folder, "zero", min(names), "step.pt"), weights_only=False)
    models = [name for name in os.listdir(output_folder) if name.endswith("_model_states.pt")]
    module = torch.load(os.path.join(output_folder, min(models)), map_location="cpu", weights_only=False, mmap=True)
    version = module["ds_version"]
    kept = {name: saved[name] for name in ("loss_scaler", "dynamic_loss_scale", "overflow")}
    inner = {"state": {0: {"step": step}}, "param_groups": groups}
    content = kept | {"ds_version": version, "param_groups": groups, "optimizer_state_dict": inner}
    os.remove(path)  # it is mapped into memory: write a new file, not into this one
    torch.save(content, path)
    for name in names:
        torch.save(step, os.path.join(output_folder, "zero", name, "step.pt"))
    for name in models:
        os.remove(os.path.join(output_folder, name))
    for name in _MODEL_STATES:
        torch.save(module | {"module": {}}, os.path.join(output_folder, name))


def _shape(output_folder: str, shapes: dict[str, torch.Size]) -> None:
    """Gives tensors their shapes, which ZeRO-1 and 2 need: ZeRO-3 writes flat ones."""
    for name, shape in shapes.items():
        for tensor in _TENSORS:
            path = os.path.join(output_folder, "zero", name, f"{tensor}.pt")
            content = torch.load(path, weights_only=False)
            if isinstance(content, torch.Tensor):
                torch.save({"param": content[: shape.numel()].reshape(shape)}, path)


def load(engine: Any, folder: str, tag: str) -> None:
    """Loads the universal checkpoint `folder/tag` into an engine of any number of ranks; every rank calls it.

    Raises:
        CorruptError: it is incomplete.
    """
    output_folder = os.path.join(folder, tag)
    if not all(os.path.exists(os.path.join(output_folder, name)) for name in _MODEL_STATES):
        raise CorruptError("the universal checkpoint is incomplete.", output_folder)
    config = engine._config
    config.load_universal_checkpoint = True
    try:
        with plain_path(folder) as link:
            engine.load_checkpoint(link, tag=tag, load_module_strict=is_fully_trained(engine.module))
    finally:
        config.load_universal_checkpoint = False  # later loads read DeepSpeed's own files
    _restore_settings(engine.optimizer.optimizer, output_folder)


def _restore_settings(optimizer: torch.optim.Optimizer, output_folder: str) -> None:
    """Corrects what DeepSpeed loads wrongly.

    Under ZeRO-3 it gives all parameter groups the settings of the first, such as its weight decay. It also gives all parameters
    one tensor as step counter, which each then increments: Adam's bias correction would be that of a much later step. Both are
    set again here, under any stage. A fused optimizer needs its counter on the device.
    """
    path = os.path.join(output_folder, "zero", "optimizer_state.pt")
    saved = torch.load(path, map_location="cpu", weights_only=False)["param_groups"]
    for group, known in zip(optimizer.param_groups, saved, strict=True):
        group.update({key: value for key, value in known.items() if key != "params"})
    on_device = optimizer.param_groups[0].get("fused")
    for state in optimizer.state.values():
        state["step"] = state["step"].to(state["exp_avg"].device if on_device else "cpu", copy=True)
