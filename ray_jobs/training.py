"""What `pretrain` and `embed` share: the order of the rows, the run, and its workers."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cluster.capacity import has_gpus, resolve_workers
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, ResumePolicy, Spec
from data_pipeline.errors import ConfigError
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.feed.reader import NUMBERING_VERSION
from data_pipeline.order.mixture import temperature_weights
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
    of_tasks: Literal["one_task", "mixed"] | None = None,
) -> OrderedRows:
    """The order of a run over the streams with a weight.

    Args:
        stages: phases of the mixture, each with its last step and other weights.
        of_tasks: what a step is made of if the streams are tasks and the weights shares of rows; None for languages, whose
            weights are shares of tokens.
    """
    order = RowOrder(
        streams=manifest.order_streams(weights, of_tokens=of_tasks is None),
        whole_steps=of_tasks == "one_task",
        batch=settings.batch_size,
        seed=seed,
        warmup=settings.sizes.warmup,
        stages=tuple(
            Phase(until=until, weights=tuple(stream.weight for stream in manifest.order_streams(weights | part)))
            for until, part in stages
        ),
    )
    return OrderedRows(order=order, folder=folder, manifest=manifest, micro_batch=settings.micro_batch)


def shares(sizes: dict[str, int], given: dict[str, float], alpha: float, section: str) -> dict[str, float]:
    """The shares of languages or tasks: as given, 0 where not named, or in proportion to size ** alpha.

    Raises:
        ConfigError: one has a share but no rows.
    """
    if unknown := sorted(set(given) - set(sizes)):
        there = ", ".join(sorted(sizes))
        raise ConfigError(f"there are no rows of {unknown[0]}.", f"{section}.weights", f"There are those of {there}.")
    return {name: given.get(name, 0.0) for name in sizes} if given else temperature_weights(sizes, alpha)


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
