"""ZeRO-3 from the first byte on: no rank ever holds a whole model.

DeepSpeed cuts weights when an engine is made of a model that is there. Here each weight is cut as soon as it is read, so that a
rank holds its own part and the one weight that is being read. Transformers' own way, `HfDeepSpeedConfig`, reads the whole model
on the first rank, computes buffers in the precision of the run, and takes missing weights as given.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from trainer.collectives import first_failure
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.models.adapters import add_adapters
from trainer.models.forward_check import OtherRankError
from trainer.tasks.task import Task

_MASTER = "fp32_part"
"""The attribute of a weight that holds this rank's part of it before it was rounded, until the optimizer has it."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Of `mallopt`: bytes from which on an allocation is returned when it is freed, and free bytes that are kept at most."""
_MOST_KEPT = 32 << 20
"""What glibc raises the former to by itself."""


def module_of(task: Task, config: TrainConfig) -> Any:
    """The task's module, with adapters if there are to be some; under ZeRO-3 with weights that are cut, and on this worker's
    device. Every rank calls it.

    Raises:
        ModelError: as `Task.module`.
        ConfigError: as `add_adapters`.
    """
    if config.zero_stage < 3:
        module: Any = task.module()
        if config.lora is not None:
            add_adapters(module.model, config.lora)
        return module
    cut = _Cutter(config)
    with return_freed_memory():
        module = task.module(cut)
        if config.lora is not None:
            add_adapters(module.model, config.lora)
        for weight in module.parameters():  # those that were drawn, tied or computed
            if not hasattr(weight, "ds_id"):
                cut(weight)
    weights = list(module.parameters())
    # DeepSpeed sums gradients in the order of these numbers: as if it had cut the whole model.
    for weight, number in zip(weights, sorted(weight.ds_id for weight in weights), strict=True):
        weight.ds_id = number
    for buffer in module.buffers():
        buffer.data = buffer.data.to(_device())
    return module


class _Cutter:
    """Called with a weight, leaves this rank its part of it, in the precision of the run."""

    def __init__(self, config: TrainConfig) -> None:
        self._rounds = config.precision == "bf16"
        self._settings = config.deepspeed(1, 1)
        self._first: Any = None
        """A weight that is cut: it knows how to cut others."""

    def __call__(self, weight: torch.nn.Parameter) -> None:
        if self._rounds:
            setattr(weight, _MASTER, _part(weight.data))
        # In memory of its own: what is written to a file's private pages stays in memory until the file is closed.
        weight.data = weight.data.bfloat16() if self._rounds else weight.data.clone()
        if self._first is None:
            prepare_environment()
            import deepspeed

            alone = torch.nn.ParameterList([weight])
            deepspeed.zero.Init(module=alone, config_dict_or_path=self._settings, dtype=weight.dtype)
            self._first = weight
        else:
            self._first.convert_to_zero_parameters([weight])


def _device() -> torch.device:
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def _part(whole: torch.Tensor) -> torch.Tensor:
    """This rank's part, of parts that are equally long: the last is filled up."""
    size = -(-whole.numel() // dist.get_world_size())
    first = dist.get_rank() * size
    own = whole.flatten()[first : first + size]
    return torch.nn.functional.pad(own, (0, size - own.numel())).clone()


def restore_masters(engine: Any) -> None:
    """The optimizer's fp32 weights as the model had them: DeepSpeed makes them of weights that were rounded to bf16."""
    from deepspeed.utils import safe_set_local_fp32_param

    for weight in engine.module.parameters():
        if hasattr(weight, _MASTER):
            if weight.requires_grad:
                safe_set_local_fp32_param(weight, getattr(weight, _MASTER).to(engine.device))
            delattr(weight, _MASTER)


@contextmanager
def gather_layer_by_layer(module: torch.nn.Module) -> Iterator[None]:
    """While the block runs, a forward of any part of `module` finds its weights whole: those of a layer while that layer runs,
    those beside the layers all the time. Every rank makes the same calls, until one fails. No gradients.

    A rank on which the forward fails must call `first_failure` with the others, whose next layer then raises an
    OtherRankError in place of waiting for its weights.

    DeepSpeed's own hooks want each forward to begin with the whole module and to end well.
    """
    from deepspeed.runtime.zero import GatheredParameters

    layers = _layers(module)
    inside = {id(part) for layer in layers for part in layer.modules()}
    beside = [part for part in module.modules() if id(part) not in inside]
    always = {weight for part in beside for weight in part.parameters(recurse=False)}
    held: dict[int, ExitStack] = {}

    def gather(layer: torch.nn.Module, _: Any) -> None:
        held[id(layer)] = ExitStack()
        if failure := first_failure(""):
            raise OtherRankError(failure)
        held[id(layer)].enter_context(GatheredParameters([one for one in layer.parameters() if one not in always]))

    def release(layer: torch.nn.Module, *_: Any) -> None:
        held.pop(id(layer)).close()

    hooks = [layer.register_forward_pre_hook(gather) for layer in layers]
    hooks += [layer.register_forward_hook(release, always_call=True) for layer in layers]
    try:
        with return_freed_memory(), GatheredParameters(sorted(always, key=lambda weight: weight.ds_id)):  # type: ignore[attr-defined]
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """While the block runs, a large tensor's memory goes back to the system when it is freed. glibc otherwise keeps what lies
    between small things that are still in use, which comes to as much as the model; it does so again after the block."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # another system
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MOST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MOST_KEPT)


def _layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the outermost lists of modules, which is where models keep their layers."""
    found: list[torch.nn.Module] = []
    for part in module.children():
        found += list(part.children()) if isinstance(part, torch.nn.ModuleList) else _layers(part)
    return list(dict.fromkeys(found))
