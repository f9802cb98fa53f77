"""One optimizer step over all micro-batches of all ranks."""

import math
from typing import Any

import torch
import torch.distributed as dist

from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.skip_nonfinite import skip_nonfinite
from trainer.engine.passes import Passes
from trainer.engine.passes.direct import direct
from trainer.engine.step_clock import StepClock
from trainer.engine.step_totals import StepTotals
from trainer.monitoring.step_outcome import StepOutcome
from trainer.tasks.task import Batch


def set_rates(engine: Any, config: TrainConfig, step: int) -> None:
    """Sets the learning rates of a step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = config.rate(step, group["embedding"], group["use_muon"])


def optimizer_step(
    engine: Any,
    batches: list[Batch],
    streams: int,
    requests: int,
    is_written: bool,
    own_seconds: float = 0.0,
    passes: Passes = direct,
) -> StepOutcome:
    """Forward, backward and update; every rank calls it, with as many batches.

    The sum of losses is divided by the number of targets of the whole step, not batch by batch: ranks whose rows have
    fewer targets would weigh too much otherwise. One all-reduce carries these numbers and all that ranks report (`StepTotals`).
    """
    device, clock = engine.device, StepClock()
    totals = StepTotals.of(batches, streams, requests, is_written, own_seconds).over_ranks(device)
    clock.lap("agree")
    # DeepSpeed divides by accumulation steps and averages over ranks; both are multiplied back in.
    scale = dist.get_world_size() * engine.gradient_accumulation_steps() / max(1, sum(totals.targets))
    sums = torch.zeros(streams, dtype=torch.float64, device=device)
    passes(engine, batches, scale, sums, clock)
    dist.all_reduce(sums)
    clock.lap("agree")
    with skip_nonfinite(engine.optimizer, sums.sum()):
        engine.step()
    outcome = _outcome(engine, totals, sums.tolist(), clock)
    clock.lap("update")
    clock.read_device()
    return outcome


def _outcome(engine: Any, totals: StepTotals, sums: list[float], clock: StepClock) -> StepOutcome:
    """The measurements of a step from the sums over all ranks, among them the mean loss and the gradient norm."""
    norm = engine.get_global_grad_norm()
    return StepOutcome(
        loss=sum(sums) / max(1, sum(totals.targets)),
        norm=None if norm is None else float(norm),
        is_applied=engine.was_step_applied(),
        losses=[loss / count if count else math.nan for loss, count in zip(sums, totals.targets, strict=True)],
        targets=totals.targets,
        tokens=totals.tokens,
        attention_pairs=totals.attention_pairs,
        padding=1 - totals.tokens / max(1, totals.padded_tokens),
        requests=totals.requests,
        ranks_written=totals.ranks_written,
        own_seconds=totals.own_seconds,
        seconds=clock.seconds,
    )
