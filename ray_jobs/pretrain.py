"""`scion pretrain`: continued pretraining of the transferred model on the shards, masked or causal as it is."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from data_pipeline import artifact, storage
from data_pipeline.artifact import Draft, Plan
from data_pipeline.order.mixture import temperature_weights
from data_pipeline.shards import manifest
from ray_jobs import shard, transfer
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.stage import Stage, Start, need, transferred
from ray_jobs.training import planned_rows, train
from trainer.engine.heldout import Heldout
from trainer.engine.tasks import LanguageModelTask

KIND = "model"
_EVALUATION_SEED = -1


def plan(config: ScionConfig, start: Start) -> Plan:
    settings = {"pretrain": artifact.identity(config.pretrain), "seed": start.seed, "workers": config.workers}
    inputs = {"shards": shard.plan(config).id, "model": transfer.plan(config, start).id}
    return Plan(uri=start.at(config, "pretrain"), kind=KIND, config=settings, inputs=inputs)


def stage(config: ScionConfig, start: Start) -> Stage:
    return Stage(
        name=f"pretrain {start.name}",
        plan=plan(config, start),
        fill=lambda draft, report: fill(config, start, draft, report),
        resumable=True,
    )


def fill(config: ScionConfig, start: Start, draft: Draft, report: Reporter) -> str:
    """Trains, and writes a Hugging Face folder; a killed run goes on from its newest checkpoint."""
    need(shard.plan(config), "shard")
    model = need(transfer.plan(config, start), "transfer")
    result = continued(config, model, start.seed, plan(config, start), report)
    draft.metrics = {"history": result["history"], "bits_per_byte": result["evaluations"]}
    before, after = result["evaluations"]["0"], result["evaluations"][str(config.pretrain.train.steps)]
    return f"{config.pretrain.train.steps} steps, {before:.3f} to {after:.3f} bits per byte on held-out text"


def continued(config: ScionConfig, model: str, seed: int, plan: Plan, report: Reporter) -> dict[str, Any]:
    """Trains `model` on the shards into the folder of `plan`; the run's history and its scores on held-out text."""
    shards, settings = shard.plan(config).uri, config.pretrain
    folder, heldout_folder = storage.join(shards, "rows"), storage.join(shards, "heldout")
    rows = manifest.load(folder)
    tokens = {lang: sum(shard.tokens for shard in part) for lang, part in rows.streams.items()}
    task = LanguageModelTask(model_uri=model, length=rows.length, probability=settings.probability, seed=seed)
    task.check()
    weights = temperature_weights(tokens, settings.alpha)
    return train(
        config,
        settings.train,
        task,
        planned_rows(config, settings.train, folder, rows, weights, seed),
        plan,
        report,
        Heldout(
            folder=heldout_folder,
            manifest=manifest.load(heldout_folder),
            task=replace(task, seed=_EVALUATION_SEED),
            rows=settings.heldout_rows,
        ),
    )


def main(config: ScionConfig, console: Console) -> None:
    stage(config, transferred(config)).run(console)
