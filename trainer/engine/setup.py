"""From a task and its settings to a DeepSpeed engine inside a Ray Train worker."""

import contextlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.optimizer import optimizer_for
from trainer.deepspeed_bridge.weight_average import track_average
from trainer.models.cpu_dropout import replace_dropout
from trainer.models.forward_check import ForwardCheck
from trainer.models.freezing import freeze
from trainer.models.graphs import compile_for_training

_ALIGNED = 16
"""Bytes: for a matrix that lies elsewhere, behind a weight of an odd size, cuBLAS falls back to other kernels. Groups of their
own keep vectors, such as the bias of an odd vocabulary, out of the matrices' buffers (`optimizer.parameter_groups`)."""


def check_forward(module: Any, config: TrainConfig, length: int) -> ForwardCheck:
    """Takes the leanest forward of `module` that is right on every rank, on their devices and in the precision of the run.

    Raises:
        ModelError: on some rank no forward is right.
    """
    if config.zero_stage == 3:
        with partitioned.gather_layer_by_layer(module):
            own = module.check(length)
    else:
        own = _checked_whole(module, config, length)
    found: list[Any] = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    most = max(found, key=lambda one: one.path.generality)
    module.use_check(most)
    return most


def _checked_whole(module: Any, config: TrainConfig, length: int) -> ForwardCheck:
    """As DeepSpeed does a moment later, weights take the run's precision; buffers, such as rotary frequencies, stay fp32."""
    if torch.cuda.is_available():
        module.to("cuda")
    whole = _rounded(module) if config.precision == "bf16" else []
    own: ForwardCheck = module.check(length)
    for weight, data in whole:
        weight.data = data
    return own


def _rounded(module: torch.nn.Module) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Rounds the weights to bf16; what they were, in the host's memory, since the optimizer starts from that."""
    whole = [(weight, weight.data.cpu()) for weight in module.parameters()]
    for weight, _ in whole:
        weight.data = weight.data.bfloat16()
    return whole


def make_engine(module: torch.nn.Module, config: TrainConfig, micro: int, accumulation: int) -> Any:
    """The engine around `module`, on this worker's device, with its process group already there (Ray Train's)."""
    prepare_environment()
    import deepspeed

    if config.activation_checkpointing:
        model: Any = module.model
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.uses_compile(torch.cuda.is_available()):
        _compile(module, config.zero_stage)
    elif not torch.cuda.is_available():
        replace_dropout(module)
    freeze(module, config.frozen, adapted=config.lora is not None)
    optimizer = optimizer_for(module, config)
    exact = config.precision == "bf16" and config.zero_stage < 3
    before = {name: parameter.data.cpu() for name, parameter in module.named_parameters()} if exact else {}
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config.deepspeed(micro, accumulation))
    if exact:
        _restore_masters(engine, before)
    partitioned.restore_masters(engine)
    if config.ema is not None:
        track_average(engine, config.ema)
    return engine


def _restore_masters(engine: Any, before: dict[str, torch.Tensor]) -> None:
    """The optimizer's fp32 weights as the model had them: DeepSpeed makes them of weights that it has rounded to bf16."""
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, before.pop(name).to(engine.device))


def _compile(module: Any, zero_stage: int) -> None:
    """ZeRO-3 gathers weights before it calls what they belong to, in which no graph may be. So a layer is a leaf to it, whose
    weights come together, and its forward a graph."""
    if zero_stage < 3:
        module.compile_graph()
    elif layers := module.compilable_layers():
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(module, list({type(layer) for layer in layers}))
        for layer in layers:
            layer.forward = compile_for_training(layer.forward)


def slow_reasons(module: Any, config: TrainConfig) -> list[str]:
    """What in this set-up costs speed, in words (`specs/performance.md`). After the engine is made."""
    trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad and weight.ndim > 1]
    astray = [name for name, weight in trained if weight.data_ptr() % _ALIGNED]
    found = {
        f"{len(astray)} matrices, {', '.join(astray[:2])} first, do not lie at multiples of {_ALIGNED} bytes, so that products "
        "take slow kernels: one before them has an odd number of entries": bool(astray),
        "fp32 on a GPU: train.precision=bf16 is several times as fast": torch.cuda.is_available()
        and config.precision == "fp32",
        "not compiled: train.compile=true": torch.cuda.is_available()
        and not config.uses_compile(True)
        and bool(module.compilable_layers()),
        "the optimizer works in the host's memory": config.offload is not None,
        "activations are computed twice": config.activation_checkpointing,
    }
    return [*module.slow_reasons(), *(said for said, holds in found.items() if holds)]


def device_name() -> str:
    """What this worker trains on, as its maker calls it."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def row_norms(engine: Any, groups: dict[str, NDArray[np.int64]], zero_stage: int) -> dict[str, float]:
    """The mean length of the embeddings' rows in each group; every rank calls it."""
    import deepspeed

    model = getattr(engine.module, "model", engine.module)
    weight = model.get_input_embeddings().weight
    with torch.no_grad(), deepspeed.zero.GatheredParameters([weight], enabled=zero_stage == 3):
        lengths = weight.float().norm(dim=1).cpu().numpy()
    return {name: round(float(lengths[rows].mean()), 5) for name, rows in groups.items() if len(rows)}
