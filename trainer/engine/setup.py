"""From a module and the run's settings to an engine on one worker."""

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.collectives import from_every_rank
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.initialize import compile_module, initialize
from trainer.deepspeed_bridge.weight_average import track_average
from trainer.models.cpu_dropout import replace_dropout
from trainer.models.forward_check import ForwardCheck
from trainer.models.freezing import freeze

_ALIGNED = 16
"""Bytes. A matrix elsewhere, such as one behind a weight of an odd size, makes cuBLAS take slower kernels. Optimizer groups of
their own keep vectors, such as the bias of an odd vocabulary, out of the matrices' buffers (`optimizer.parameter_groups`)."""


def check_forward(module: Any, config: TrainConfig, length: int) -> ForwardCheck:
    """Takes the leanest forward of `module` that is right on every rank, on their devices and in the precision of the run.

    Raises:
        ModelError: on some rank no forward is right.
    """
    if config.zero_stage == 3:
        with partitioned.gather_layer_by_layer(module):
            own = module.check(length)
    else:
        own = _check_whole(module, config, length)
    most_general = max(from_every_rank(own), key=lambda check: check.path.generality)
    module.use_check(most_general)
    return most_general


def _check_whole(module: Any, config: TrainConfig, length: int) -> ForwardCheck:
    """Checks the model with weights in the run's precision, as DeepSpeed makes them later.

    Buffers, such as rotary frequencies, stay fp32.
    """
    if torch.cuda.is_available():
        module.to("cuda")
    whole = _round_weights(module) if config.precision == "bf16" else []
    check: ForwardCheck = module.check(length)
    for weight, data in whole:
        weight.data = data
    return check


def _round_weights(module: torch.nn.Module) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Rounds the weights to bf16. Returns the fp32 weights in the host's memory, since the optimizer starts from them."""
    whole = [(weight, weight.data.cpu()) for weight in module.parameters()]
    for weight, _ in whole:
        weight.data = weight.data.bfloat16()
    return whole


def make_engine(module: Any, config: TrainConfig, micro_batch: int, accumulation: int) -> Any:
    """The DeepSpeed engine around `module`, frozen and compiled as configured; every rank calls it, in Ray Train."""
    on_gpu = torch.cuda.is_available()
    if config.activation_checkpointing:
        model: Any = module.model
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.uses_compile(on_gpu):
        compile_module(module, config.zero_stage)
    elif not on_gpu:
        replace_dropout(module)
    freeze(module, config.frozen, adapted=config.lora is not None)
    engine = initialize(module, config, micro_batch, accumulation)
    if config.ema is not None:
        track_average(engine, config.ema)
    return engine


def slow_reasons(module: Any, config: TrainConfig) -> list[str]:
    """What in this set-up costs speed, in words (`specs/performance.md`). Call it after the engine is made."""
    unaligned = [name for name, weight in _multiplied(module) if weight.data_ptr() % _ALIGNED]
    on_gpu = torch.cuda.is_available()
    reasons = {
        f"of {len(unaligned)} of the matrices, such as {', '.join(unaligned[:1])}, the addresses are no multiples of "
        f"{_ALIGNED} bytes, so that products take slow kernels: one before them has an odd number of entries": bool(unaligned),
        "fp32 on a GPU: train.precision=bf16 is several times as fast": on_gpu and config.precision == "fp32",
        "not compiled: train.compile=true": on_gpu and not config.uses_compile(True) and bool(module.compilable_layers()),
        "the optimizer works in the host's memory": config.offload is not None,
        "activations are computed twice": config.activation_checkpointing,
    }
    return [*module.slow_reasons(), *(reason for reason, holds in reasons.items() if holds)]


def _multiplied(module: Any) -> Iterator[tuple[str, Any]]:
    """The trained matrices that products read: not those of embeddings, unless a head shares them."""
    for prefix, part in module.named_modules():
        if not isinstance(part, torch.nn.Embedding):
            for name, weight in part.named_parameters(prefix, recurse=False):
                if weight.requires_grad and weight.ndim > 1:
                    yield name, weight


def device_name() -> str:
    """The name of this worker's device, as its maker calls it."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
