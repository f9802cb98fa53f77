"""What `pretrain` and `embed` have in common: workers started, watched and waited for."""

from typing import Any

import torch

from data_pipeline import storage
from data_pipeline.artifact import Plan
from data_pipeline.feed.planned import PlannedRows
from data_pipeline.order.plan import OrderPlan
from data_pipeline.shards.manifest import Manifest
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter, watched
from trainer.engine.config import TrainConfig
from trainer.engine.heldout import Heldout
from trainer.engine.launch import WORKING, fit
from trainer.engine.loop import TrainRun
from trainer.engine.store import Store
from trainer.engine.tasks import Task


def planned_rows(
    config: ScionConfig, settings: TrainConfig, folder: str, manifest: Manifest, weights: dict[str, float], seed: int
) -> PlannedRows:
    """The order of a run over the streams that have a weight."""
    order = OrderPlan(streams=manifest.order_streams(weights), batch=settings.batch_size, seed=seed)
    return PlannedRows(plan=order, folder=folder, manifest=manifest, micro=settings.micro_batch)


def train(
    config: ScionConfig,
    settings: TrainConfig,
    task: Task,
    rows: PlannedRows,
    plan: Plan,
    report: Reporter,
    heldout: Heldout | None = None,
) -> dict[str, Any]:
    """Trains into the folder of `plan` and returns the run's history; goes on from what a killed run left there."""
    with watched(report, "train") as board:
        run = TrainRun(
            task=task,
            config=settings,
            rows=rows,
            heldout=heldout,
            export_uri=plan.uri,
            store=Store(storage.join(plan.uri, WORKING), settings.keep_checkpoints),
            identity=plan.id,
            threads=max(1, int(config.worker_cpus)),
            progress=board,
        )
        gpu = torch.cuda.is_available()
        return fit(run, workers=config.workers, worker_cpus=config.worker_cpus, gpu=gpu, storage_uri=plan.uri)
