"""`scion pretrain`: masked-LM continued pretraining of the transferred model on the shards."""

import torch
from rich.console import Console

from data_pipeline import artifact, storage
from data_pipeline.artifact import Draft, Plan
from data_pipeline.feed.planned import PlannedRows
from data_pipeline.order.mixture import temperature_weights
from data_pipeline.order.plan import OrderPlan
from data_pipeline.shards import manifest
from ray_jobs import shard, transfer
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter, watched
from ray_jobs.stage import Stage, Start, need, transferred
from trainer.engine.heldout import Heldout
from trainer.engine.launch import fit
from trainer.engine.loop import TrainRun
from trainer.engine.tasks import MaskedLMTask

KIND = "model"
_EVALUATION_SEED = -1


def plan(config: ScionConfig, start: Start) -> Plan:
    settings = {"pretrain": artifact.identity(config.pretrain), "seed": config.seed, "workers": config.workers}
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
    shards, model = need(shard.plan(config), "shard"), need(transfer.plan(config, start), "transfer")
    settings = config.pretrain
    rows = manifest.load(storage.join(shards, "rows"))
    weights = temperature_weights({lang: sum(s.tokens for s in part) for lang, part in rows.streams.items()}, settings.alpha)
    order = OrderPlan(streams=rows.order_streams(weights), batch=settings.train.batch_size, seed=config.seed)
    planned = PlannedRows(
        plan=order, folder=storage.join(shards, "rows"), manifest=rows, micro=settings.train.micro(config.workers)
    )
    task = MaskedLMTask(model_uri=model, length=rows.length, probability=settings.probability, seed=config.seed)
    heldout = Heldout(
        folder=storage.join(shards, "heldout"),
        manifest=manifest.load(storage.join(shards, "heldout")),
        task=MaskedLMTask(model_uri=model, length=rows.length, probability=settings.probability, seed=_EVALUATION_SEED),
        rows=settings.heldout_rows,
    )
    with watched(report, "masked LM") as board:
        run = TrainRun(
            task=task, config=settings.train, rows=planned, heldout=heldout, export_uri=draft.uri,
            identity=plan(config, start).id, threads=max(1, int(config.worker_cpus)), progress=board,
        )  # fmt: skip
        result = fit(
            run,
            workers=config.workers,
            worker_cpus=config.worker_cpus,
            gpu=torch.cuda.is_available(),
            storage_uri=draft.uri,
        )
    draft.metrics = {"history": result["history"], "bits_per_byte": result["evaluations"]}
    before, after = result["evaluations"]["0"], result["evaluations"][str(settings.train.steps)]
    return f"{settings.train.steps} steps, {before:.3f} to {after:.3f} bits per byte on held-out text"


def main(config: ScionConfig, console: Console) -> None:
    stage(config, transferred(config)).run(console)
