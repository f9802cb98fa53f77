"""`scion pretrain`: continued pretraining of the transferred model on the shards, masked or causal."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.shards import manifest
from ray_jobs import shard, transfer
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.job import Job
from ray_jobs.stage import ChainStart, Stage, main_start, require
from ray_jobs.training import order_rows, resume_policy, shares, train
from trainer.monitoring import run_log
from trainer.tasks.heldout_text import HeldoutText
from trainer.tasks.language_modeling import LanguageModelTask
from trainer.transfer.plan import TransferPlan

JOB = Job(
    summary="continued pretraining: masked tokens, or the next one",
    reads="OUTPUT/shards and OUTPUT/transfer",
    writes="OUTPUT/pretrain: a Hugging Face folder, and a log line a step",
    keys=("pretrain",),
    after=("shard", "transfer"),
)
KIND = "model"
_EVALUATION_SEED = -1
_OFTEN = 50
"""Passes over the text from which on the user is warned."""


def spec(config: ScionConfig, start: ChainStart) -> Spec:
    """The specification of the pretrained model of the chain `start`; fingerprints its inputs."""
    settings = {"pretrain": artifact.identity(config.pretrain), "seed": start.seed}
    inputs = {"shards": shard.spec(config).id, "model": transfer.spec(config, start).id}
    return Spec(
        uri=start.at(config, "pretrain"),
        kind=KIND,
        config=settings,
        inputs=inputs,
        resume_policy=resume_policy(config.pretrain, "pretrain"),
    )


def stage(config: ScionConfig, start: ChainStart) -> Stage:
    """The stage that continues the pretraining of a chain's model; runs nothing yet."""
    artifact_spec = spec(config, start)
    return Stage(
        name=f"pretrain {start.name}",
        spec=artifact_spec,
        fill=lambda draft, report: fill(config, start, draft, report),
        is_resumable=True,
        training_uri=artifact_spec.uri,
    )


def fill(config: ScionConfig, start: ChainStart, draft: Draft, report: Reporter) -> str:
    """Trains and writes a Hugging Face folder, from the newest checkpoint of a killed run. Returns a line for the user."""
    require(shard.spec(config), "shard")
    model = require(transfer.spec(config, start), "transfer")
    made = TransferPlan.load(model)
    result = train_on_shards(config, model, made, start.seed, spec(config, start), draft, report)
    draft.metrics = {"history": result["history"], "bits_per_byte": result["evaluations"]}
    draft.metrics["bits_per_byte_by_language"] = bits_per_byte_by_language(draft.uri)
    draft.metrics["weights"] = config.pretrain.train.export_origin
    draft.metrics |= {name: result[name] for name in ("changes", "devices")}
    before, after = result["evaluations"]["0"], result["evaluations"][str(config.pretrain.train.steps)]
    return f"{config.pretrain.train.steps} steps, {before:.3f} to {after:.3f} bits per byte on held-out text"


def bits_per_byte_by_language(uri: str) -> dict[str, dict[str, float]]:
    """Bits per byte of each language by step, from the run's log; empty for one language."""
    attempts = run_log.read(storage.join(uri, run_log.FOLDER), fields=("step", "by_language"))
    entries = (entry for attempt in attempts for entry in attempt)
    scored = {str(entry["step"]): dict(entry["by_language"]) for entry in entries if entry["kind"] == "evaluation"}
    return scored if any(len(scores) > 1 for scores in scored.values()) else {}


def train_on_shards(
    config: ScionConfig, model: str, made: TransferPlan, seed: int, spec: Spec, draft: Draft, report: Reporter
) -> dict[str, Any]:
    """Trains `model` on the shards into the folder of `spec`; returns the run's history and its scores on held-out text.

    Args:
        made: the transfer plan of the model, whose groups of embedding rows are logged.
    """
    shards, settings = shard.folder(config), config.pretrain
    folder, heldout_folder = storage.join(shards, "rows"), storage.join(shards, "heldout")
    rows = manifest.load(folder)
    tokens = {lang: sum(shard.tokens for shard in part) for lang, part in rows.streams.items()}
    task = LanguageModelTask(
        model_uri=model,
        length=rows.length,
        probability=settings.probability,
        seed=seed,
        mntp=settings.objective == "mntp",
    )
    task.check()
    weights = shares(tokens, settings.weights, settings.alpha, "pretrain")
    stages = tuple((part.until, shares(tokens, part.weights, part.alpha, "pretrain")) for part in settings.stages)
    order = order_rows(settings.train, folder, rows, weights, seed, stages)
    report.note(describe_passes(order.order.passes(settings.train.steps), settings.train.steps))
    return train(
        config,
        settings.train,
        task,
        order,
        spec,
        draft,
        report,
        HeldoutText(
            folder=heldout_folder,
            manifest=manifest.load(heldout_folder),
            task=replace(task, seed=_EVALUATION_SEED),
            rows=settings.heldout_rows,
        ),
        row_groups=made.groups(),
    )


def describe_passes(found: dict[str, float], steps: int, what: str = "text") -> str:
    """A line on how often the run reads its text or pairs; of several languages or tasks the least and the most often."""
    least, most = (choose(found, key=found.__getitem__) for choose in (min, max))
    times = f"{_number(found[least])} ({least}) to {_number(found[most])} times ({most})"
    line = f"{steps:,} steps read the {what} {times if least != most else f'{_number(found[most])} times'}"
    return line if found[most] < _OFTEN else f"{line}; {max(1, round(steps / found[most])):,} would read it once"


def _number(times: float) -> str:
    return f"{times:,.0f}" if times >= 10 else f"{times:.2g}"


def needs_ray(config: ScionConfig) -> bool:
    """Whether there is something to train.

    Raises:
        ArtifactError: the inputs do not exist.
    """
    if stage(config, main_start(config)).finished() is not None:
        return False
    require(shard.spec(config), "shard")
    require(transfer.spec(config, main_start(config)), "transfer")
    return True


def main(config: ScionConfig, console: Console) -> None:
    stage(config, main_start(config)).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
