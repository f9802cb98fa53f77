"""What `pretrain` and `embed` share: the order of the rows, the run, and its workers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.capacity import has_gpus, resolve_workers
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, ResumePolicy, Spec
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.feed.reader import NUMBERING_VERSION
from data_pipeline.order.row_order import Phase, RowOrder
from data_pipeline.shards.manifest import Manifest
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter, progress_board
from trainer.checkpoints.store import WORKING, Store
from trainer.checkpoints.task_file import write_task
from trainer.config.train import TrainConfig
from trainer.engine.launch import fit
from trainer.engine.train_run import TrainRun
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.heldout_pairs import HeldoutPairs
from trainer.tasks.heldout_text import HeldoutText
from trainer.tasks.language_modeling import LanguageModelTask


def order_rows(
    settings: TrainConfig,
    folder: str,
    manifest: Manifest,
    weights: dict[str, float],
    seed: int,
    stages: tuple[tuple[int, dict[str, float]], ...] = (),
) -> OrderedRows:
    """The order of a run over the streams with a weight.

    Args:
        stages: phases of the mixture, each with its last step and other weights.
    """
    order = RowOrder(
        streams=manifest.order_streams(weights),
        batch=settings.batch_size,
        seed=seed,
        warmup=settings.sizes.warmup,
        stages=tuple(
            Phase(until=until, weights=tuple(stream.weight for stream in manifest.order_streams(weights | part)))
            for until, part in stages
        ),
    )
    return OrderedRows(order=order, folder=folder, manifest=manifest, micro_batch=settings.micro_batch)


def resume_policy(section: object, name: str) -> ResumePolicy:
    """Which settings of a section may change when its run resumes."""
    return ResumePolicy(
        settings=artifact.adjustable_fields(section, name),
        length=f"{name}.train.steps",
        state=WORKING,
        keep=f"{name}.train.keep_state",
    )


def train(
    config: ScionConfig,
    settings: TrainConfig,
    task: LanguageModelTask | ContrastiveTask,
    rows: OrderedRows,
    spec: Spec,
    draft: Draft,
    report: Reporter,
    heldout: HeldoutText | HeldoutPairs | None = None,
    row_groups: dict[str, NDArray[np.int64]] | None = None,
) -> dict[str, Any]:
    """Trains into the folder of `spec`, from the newest checkpoint there, and returns the run's history."""
    with progress_board(report, "train") as board:
        run = TrainRun(
            task=task,
            config=settings,
            rows=rows,
            heldout=heldout,
            row_groups=row_groups or {},
            uri=spec.uri,
            export_uri=spec.uri,
            store=Store(storage.join(spec.uri, WORKING), settings.keep_checkpoints, draft.lease),
            identity=f"{spec.run_id}-{NUMBERING_VERSION}",
            threads=max(1, int(config.worker_cpus)),
            progress=board,
        )
        write_task(run.store, task, settings.frozen, settings.lora)
        if not settings.keep_state:
            draft.working_folders.append(run.store.uri)
        most = resolve_workers(config.workers)
        workers = (config.min_workers, most) if config.min_workers else most
        result = fit(run, workers=workers, worker_cpus=config.worker_cpus, gpu=has_gpus())
    if settings.keep_state:
        run.store.keep_newest()
    return result
