"""From a module to a DeepSpeed engine. Read from DeepSpeed 0.19.8: `initialize`, and `link_hp_params` for the fp32 weights."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.optimizer import make_optimizer
from trainer.deepspeed_bridge.settings import deepspeed_settings
from trainer.models.graphs import compile_for_training


def initialize(module: Any, config: TrainConfig, micro_batch: int, accumulation: int) -> Any:
    """The engine around `module`, on this worker's device; every rank calls it, inside Ray Train's process group."""
    prepare_environment()
    import deepspeed

    optimizer = make_optimizer(module, config)
    is_rounded = config.precision == "bf16" and config.zero_stage < 3
    before = {name: parameter.data.cpu() for name, parameter in module.named_parameters()} if is_rounded else {}
    settings = deepspeed_settings(config, micro_batch, accumulation)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    if is_rounded:
        _restore_fp32(engine, before)
    partitioned.restore_fp32(engine)
    return engine


def _restore_fp32(engine: Any, before: dict[str, torch.Tensor]) -> None:
    """Gives the optimizer the model's fp32 weights: DeepSpeed copies them from weights that it has rounded to bf16."""
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, before.pop(name).to(engine.device))


def compile_module(module: Any, zero_stage: int) -> None:
    """Compiles the forward as one graph, or layer by layer under ZeRO-3.

    The hooks by which ZeRO-3 gathers weights cannot be captured in a graph. So a layer becomes a leaf, whose weights are
    gathered together, and its forward a graph.
    """
    if zero_stage < 3:
        module.compile_graph()
    elif layers := module.compilable_layers():
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(module, list({type(layer) for layer in layers}))
        for layer in layers:
            layer.forward = compile_for_training(layer.forward)


def row_norms(engine: Any, groups: dict[str, NDArray[np.int64]], zero_stage: int) -> dict[str, float]:
    """The mean norm of the embedding rows in each group; every rank calls it."""
    import deepspeed

    model = getattr(engine.module, "model", engine.module)
    weight = model.get_input_embeddings().weight
    with torch.no_grad(), deepspeed.zero.GatheredParameters([weight], enabled=zero_stage == 3):
        norms = weight.float().norm(dim=1).cpu().numpy()
    return {name: round(float(norms[rows].mean()), 5) for name, rows in groups.items() if len(rows)}
