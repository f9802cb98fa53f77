"""ZeRO-3 from the first byte on: no rank ever holds a whole model.

DeepSpeed partitions the weights of a model that is loaded already. Here each weight is partitioned as soon as it is read, so
that a rank holds its own parts and one whole weight at a time. Transformers' own way, `HfDeepSpeedConfig`, reads the whole
model on the first rank, computes buffers in the precision of the run, and does not notice missing weights.

Read from DeepSpeed 0.19.8, runtime/zero/partition_parameters.py.
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
from trainer.deepspeed_bridge.settings import deepspeed_settings
from trainer.models.adapters import add_adapters
from trainer.models.forward_check import OtherRankError
from trainer.tasks.task import Task

_FP32_PART = "fp32_part"
"""The attribute of a weight that holds this rank's fp32 part of it, until the optimizer has copied it."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Options of `mallopt`: the size from which on a freed allocation returns to the system, and the free bytes kept at most."""
_MOST_KEPT = 32 << 20
"""The value that glibc raises the former to by itself."""


def load_module(task: Task, config: TrainConfig) -> Any:
    """The task's module, with the adapters of `config`.

    Under ZeRO-3 its weights are partitioned and on this worker's device; every rank calls it.

    Raises:
        ModelError: as `Task.module`.
        ConfigError: as `add_adapters`.
    """
    if config.zero_stage < 3:
        module: Any = task.module()
        if config.lora is not None:
            add_adapters(module.model, config.lora)
        return module
    partition = _Partitioner(config)
    with return_freed_memory():
        module = task.module(partition)
        if config.lora is not None:
            add_adapters(module.model, config.lora)
        for weight in module.parameters():  # weights that were not read from files: random, tied or computed ones
            if not hasattr(weight, "ds_id"):
                partition(weight)
    weights = list(module.parameters())
    # DeepSpeed sums gradients in the order of these numbers: number them as it does for a whole model.
    for weight, number in zip(weights, sorted(weight.ds_id for weight in weights), strict=True):
        weight.ds_id = number
    for buffer in module.buffers():
        buffer.data = buffer.data.to(_device())
    return module


class _Partitioner:
    """Called with a weight, leaves this rank its part, in the precision of the run."""

    def __init__(self, config: TrainConfig) -> None:
        self._rounds = config.precision == "bf16"
        self._settings = deepspeed_settings(config, 1, 1)
        self._first: Any = None
        """A partitioned weight: DeepSpeed gives it the method that partitions others."""

    def __call__(self, weight: torch.nn.Parameter) -> None:
        if self._rounds:
            setattr(weight, _FP32_PART, _part(weight.data))
        # A copy: private pages of a mapped file stay in memory until the file is closed.
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
    """This rank's part of a flat weight. Parts are equally long; the last is padded."""
    size = -(-whole.numel() // dist.get_world_size())
    first = dist.get_rank() * size
    own = whole.flatten()[first : first + size]
    return torch.nn.functional.pad(own, (0, size - own.numel())).clone()


def restore_fp32(engine: Any) -> None:
    """Gives the optimizer the model's fp32 weights: DeepSpeed copies them from weights that were rounded to bf16."""
    from deepspeed.utils import safe_set_local_fp32_param

    for weight in engine.module.parameters():
        if hasattr(weight, _FP32_PART):
            if weight.requires_grad:
                safe_set_local_fp32_param(weight, getattr(weight, _FP32_PART).to(engine.device))
            delattr(weight, _FP32_PART)


@contextmanager
def gather_layer_by_layer(module: torch.nn.Module) -> Iterator[None]:
    """Within the block a forward of any part of `module` finds whole weights.

    A layer's weights are gathered while that layer runs, all others throughout. Every rank makes the same calls, until one
    fails. No gradients.

    A rank on which the forward fails must call `first_failure` with the others, whose next layer then raises an
    OtherRankError in place of waiting for its weights.

    DeepSpeed's own hooks expect each forward to begin with the whole module and to succeed.
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
    """Within the block a large tensor's memory returns to the system when it is freed.

    Otherwise glibc keeps free memory that lies between small allocations, which amounts to the size of the model.
    """
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
    """The members of the outermost `ModuleList`s, where models keep their layers."""
    found: list[torch.nn.Module] = []
    for part in module.children():
        found += list(part.children()) if isinstance(part, torch.nn.ModuleList) else _layers(part)
    return list(dict.fromkeys(found))
