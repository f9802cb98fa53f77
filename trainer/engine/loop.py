"""The training loop of one worker: next rows, forward, backward, step, save. All that varies is in task and config."""

import time
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from data_pipeline import keyed_random
from data_pipeline.feed.planned import PlannedRows, RankFeed
from trainer.engine import checkpoint
from trainer.engine.checkpoint import RunState
from trainer.engine.config import TrainConfig
from trainer.engine.guards import check_finite
from trainer.engine.heldout import Heldout, evaluate
from trainer.engine.setup import engine_for, weights_of
from trainer.engine.store import Store
from trainer.engine.tasks import Batch, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """Everything that a worker is told."""

    task: Task
    config: TrainConfig
    rows: PlannedRows
    heldout: Heldout | None
    export_uri: str
    store: Store
    identity: str
    threads: int
    progress: Any
    """Handle of the driver's progress actor, or None."""


def train_worker(settings: dict[str, TrainRun]) -> dict[str, Any]:
    """Runs on every worker of Ray Train. Returns the run's history (rank 0's counts)."""
    run = settings["run"]
    rank, world = dist.get_rank(), dist.get_world_size()
    if not torch.cuda.is_available():
        torch.set_num_threads(run.threads)
    feed: RankFeed = ray.train.get_dataset_shard("train")
    engine = engine_for(run.task.module(), run.config, *feed.shape(0))
    state = checkpoint.restore(engine, run.store, run.identity)
    _evaluate(engine, run, state, rank, world)
    collate = run.task.collator()
    engine.train()
    began = time.perf_counter()
    for step, rows in enumerate(feed.stream(state.next_step, run.config.steps), state.next_step):
        waited = time.perf_counter() - began
        # Dropout is keyed on the step, so that a run that was killed and goes on draws what it would have drawn.
        torch.manual_seed(keyed_random.key("dropout", run.rows.plan.seed, step, rank) >> 1)
        micro, count = feed.shape(step)
        batches = [collate(rows.slice(i * micro, micro)) for i in range(count)]
        _set_rates(engine, run.config, step)
        loss, norm = _step(engine, batches, world)
        check_finite(step, loss, norm)
        now = time.perf_counter()
        entry = {"step": step, "loss": loss, "norm": norm, "rate": run.config.rate(step)}
        state.history.append(entry | {"seconds": round(now - began, 4), "data_wait": round(waited, 4)})
        state.next_step, began = step + 1, now
        if rank == 0 and run.progress is not None:
            run.progress.update.remote(step + 1, run.config.steps, f"loss {loss:.3f}")
        _evaluate(engine, run, state, rank, world)
        if state.next_step % run.config.checkpoint_steps == 0 and state.next_step < run.config.steps:
            checkpoint.save(engine, state, run.store)
    weights = weights_of(engine, run.config.zero_stage)
    if rank == 0:
        run.task.export(weights, run.export_uri)
    dist.barrier()
    return {"history": state.history, "evaluations": state.evaluations, "world": world}


def _evaluate(engine: Any, run: TrainRun, state: RunState, rank: int, world: int) -> None:
    """Scores held-out text where the settings say so, unless a run before the kill has."""
    done = str(state.next_step)
    if run.heldout is not None and run.config.evaluates(state.next_step) and done not in state.evaluations:
        state.evaluations[done] = evaluate(engine, run.heldout, rank, world)


def _set_rates(engine: Any, config: TrainConfig, step: int) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = config.rate(step) if step >= config.embedding_steps or group["embedding"] else 0.0


def _step(engine: Any, batches: list[Batch], world: int) -> tuple[float, float | None]:
    """One optimizer step over all micro-batches of all ranks; the mean loss of a target and the gradient norm.

    The sum of losses is divided by the number of targets of the whole step, not batch by batch: ranks whose rows have
    fewer targets would weigh too much otherwise.
    """
    device = engine.device
    totals = torch.tensor([0.0, sum(batch.targets for batch in batches)], dtype=torch.float64, device=device)
    dist.all_reduce(totals[1:])
    # DeepSpeed divides by accumulation steps and averages over ranks; both are multiplied back in.
    scale = world * engine.gradient_accumulation_steps() / max(1.0, float(totals[1]))
    for number, batch in enumerate(batches, 1):
        # Said each time, because DeepSpeed counts on from step to step, while a warm-up of the batch changes the number.
        engine.set_gradient_accumulation_boundary(number == len(batches))
        loss = engine(batch.to(device))
        totals[0] += loss.detach().double()
        engine.backward(loss * scale)
        engine.step()
    dist.all_reduce(totals[:1])
    norm = engine.get_global_grad_norm()
    return float(totals[0] / totals[1].clamp_min(1)), None if norm is None else float(norm)
