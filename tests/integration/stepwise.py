"""A training in steps that are each saved, on forked ranks."""

from collections.abc import Callable
from typing import Any

from tests.integration.test_universal import ROWS, batch
from trainer.checkpoints.state import RunState
from trainer.checkpoints.store import Store
from trainer.config.train import TrainConfig


def stepwise_config(steps: int, stage: int, precision: str = "fp32", **settings: Any) -> TrainConfig:
    """Steps of six rows, one at a time, at a rate that changes weights at once."""
    return TrainConfig(
        steps=steps,
        batch_size=ROWS,
        micro_batch=1,
        learning_rate=1e-2,
        zero_stage=stage,
        precision=precision,  # type: ignore[arg-type]
        warmup_steps=0,
        **settings,
    )


def stepwise(run: Any, engine: Any, first: int, look: Callable[[int], None] = lambda step: None) -> list[float]:
    """Trains from step `first` on, starting at its checkpoint, and exports the model to a folder named after `first`.

    Args:
        run: has a task, a config and a folder.
        look: called with the number of each step, before it is saved.
    """
    import torch.distributed as dist

    from trainer.checkpoints import restore
    from trainer.checkpoints.writer import CheckpointWriter
    from trainer.deepspeed_bridge.trained_weights import trained_weights
    from trainer.deepspeed_bridge.weight_average import averaged_weights
    from trainer.engine.step import optimizer_step, set_rates
    from trainer.ledger.ledger import Ledger

    rank, world, store = dist.get_rank(), dist.get_world_size(), Store(f"{run.folder}/checkpoints", 9)
    engine.train()
    saver, state = CheckpointWriter(engine, store, Ledger(f"{run.folder}/ledger", rank)), RunState(identity="a")
    if first:
        state = restore.restore(engine, store, "a", at_most=first)
        assert state.next_step == first
    losses = []
    for step in range(first, run.config.steps):
        set_rates(engine, run.config, step)
        losses.append(optimizer_step(engine, [batch(step, row) for row in range(rank, ROWS, world)], 1, 0, False).loss)
        state.next_step = step + 1
        look(step)
        saver.begin(state)
        saver.finish(state)
    with averaged_weights(engine), trained_weights(engine, run.config, run.folder) as weights:
        if rank == 0:
            run.task.export(weights, f"{run.folder}/from-{first}", run.config.frozen, run.config.lora)
    return losses
