"""What `pretrain` and `embed` have in common: workers started, watched and waited for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.capacity import has_gpus, settled
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Growth, Plan
from data_pipeline.feed.rank_feed import PlannedRows
from data_pipeline.feed.reader import NUMBERING
from data_pipeline.order.row_order import OrderPlan, Stage
from data_pipeline.shards.manifest import Manifest
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter, watched
from trainer.checkpoints import export
from trainer.checkpoints.store import WORKING, Store
from trainer.config.train import TrainConfig
from trainer.engine.launch import fit
from trainer.engine.loop import TrainRun
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.heldout_pairs import HeldoutPairs
from trainer.tasks.heldout_text import Heldout
from trainer.tasks.language_modeling import LanguageModelTask


def planned_rows(
    settings: TrainConfig,
    folder: str,
    manifest: Manifest,
    weights: dict[str, float],
    seed: int,
    stages: tuple[tuple[int, dict[str, float]], ...] = (),
) -> PlannedRows:
    """The order of a run over the streams that have a weight, and in other proportions up to the steps that `stages` name."""
    order = OrderPlan(
        streams=manifest.order_streams(weights),
        batch=settings.batch_size,
        seed=seed,
        warmup=settings.sizes.warmup,
        stages=tuple(
            Stage(until=until, weights=tuple(stream.weight for stream in manifest.order_streams(weights | part)))
            for until, part in stages
        ),
    )
    return PlannedRows(plan=order, folder=folder, manifest=manifest, micro=settings.micro_batch)


def growth(section: object, name: str) -> Growth:
    """How a run of this section of the configuration may go on under other settings."""
    return Growth(
        settings=artifact.adjustable(section, name),
        length=f"{name}.train.steps",
        state=WORKING,
        keep=f"{name}.train.keep_state",
    )


def train(
    config: ScionConfig,
    settings: TrainConfig,
    task: LanguageModelTask | ContrastiveTask,
    rows: PlannedRows,
    plan: Plan,
    draft: Draft,
    report: Reporter,
    heldout: Heldout | HeldoutPairs | None = None,
    row_groups: dict[str, NDArray[np.int64]] | None = None,
    elastic: bool = True,
) -> dict[str, Any]:
    """Trains into the folder of `plan` and returns the run's history; goes on from what a killed run left there."""
    with watched(report, "train") as board:
        run = TrainRun(
            task=task,
            config=settings,
            rows=rows,
            heldout=heldout,
            row_groups=row_groups or {},
            uri=plan.uri,
            export_uri=plan.uri,
            store=Store(storage.join(plan.uri, WORKING), settings.keep_checkpoints, draft.lease),
            identity=f"{plan.run_id}-{NUMBERING}",
            threads=max(1, int(config.worker_cpus)),
            progress=board,
        )
        export.write_task(run.store, task, settings.frozen, settings.lora)
        if not settings.keep_state:
            draft.working.append(run.store.uri)
        most = settled(config.workers)
        workers = (config.min_workers, most) if config.min_workers and elastic else most
        result = fit(run, workers=workers, worker_cpus=config.worker_cpus, gpu=has_gpus())
    if settings.keep_state:
        run.store.keep_newest()
    return result
