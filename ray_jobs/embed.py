"""`scion embed`: contrastive training of the pretrained model to a text embedder, on pairs or on lines of text."""

import math
import os
import shutil
from functools import partial
from typing import Any

from rich.console import Console

from cluster.capacity import has_gpus
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import DataError
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.pairs import CHUNK_TOKENS, shards
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.pairs.text_form import TEXT, template_text
from data_pipeline.shards.manifest import Manifest
from data_pipeline.sources.models import model_folder
from ray_jobs import calibration, embed_stages, mine, model_card, pretrain, shard
from ray_jobs.config import tables
from ray_jobs.config.embedders import EmbedConfig
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.model_card import Card
from ray_jobs.stage import ChainStart, Stage, main_start, require
from ray_jobs.training import order_rows, resume_policy, shares, train
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models.pooling import LATENT_ATTENTION, pooling_name
from trainer.objectives import OBJECTIVES
from trainer.objectives.combined import Combined
from trainer.objectives.nested import Nested
from trainer.objectives.objective import Objective
from trainer.tasks import heldout_pairs
from trainer.tasks.contrastive import ContrastiveTask

JOB = Job(
    summary="contrastive training to an embedder",
    reads="OUTPUT/pretrain, or any model with embed.model=FOLDER; pairs, or where there are none lines of the text; with "
    "embed.mined OUTPUT/mine",
    writes="OUTPUT/embed: a sentence-transformers folder",
    keys=("pairs", "test_pairs", "embed"),
    after=("pretrain", "mine"),
    instead=("embed.model",),
)
KIND, FOLDER = "embedder", "embed"


def spec(config: ScionConfig, start: ChainStart, folder: str = FOLDER) -> Spec:
    """The specification of the embedding model of the chain `start`; fingerprints its inputs."""
    given_pairs = config.pairs is not None
    settings = {"embed": artifact.identity(config.embed) | _chosen(config.embed, given_pairs), "seed": start.seed}
    given = None if config.embed.stages else config.embed.model
    # Without pairs it learns from the sharded text, and test pairs change nothing.
    inputs = data_fingerprints(config, "pairs", "test_pairs") if given_pairs else {"text": shard.spec(config).id}
    if config.embed.teacher is not None:
        inputs["teacher"] = model_fingerprint(config.embed.teacher, key="embed.teacher", pools=True)
    if config.embed.mined:
        inputs["pairs"] = mine.spec(config).id
    inputs["model"] = _source(config, start).id if given is None else model_fingerprint(given, key="embed.model")
    # The steps decide how many pairs are drawn from the text, so that a longer run has other pairs.
    grows = resume_policy(config.embed, "embed") if given_pairs else None
    return Spec(uri=start.at(config, folder), kind=KIND, config=settings, inputs=inputs, resume_policy=grows)


def _source(config: ScionConfig, start: ChainStart) -> Spec:
    """The artefact of the model that is trained: of the stage before, or the pretrained one."""
    earlier = embed_stages.before(config)
    return pretrain.spec(config, start) if earlier is None else spec(earlier.config, start, earlier.folder)


def _objective(settings: EmbedConfig) -> Objective:
    """The objective of the configuration, at all of its widths and exits."""
    parts = [getattr(settings.objectives, name) for name in settings.losses]
    inner = parts[0] if len(parts) == 1 else Combined(parts=tuple((part, getattr(part, "weight", 1.0)) for part in parts))
    return Nested(inner=inner, config=settings.nested) if settings.nested.is_used else inner


def _chosen(settings: EmbedConfig, given_pairs: bool) -> dict[str, Any]:
    """The rows of the tables that decide the result, and their settings."""
    builder = settings.builder
    chosen = tables.identities("objective", {name: getattr(settings.objectives, name) for name in settings.losses}, "info_nce")
    if settings.nested.is_used:
        chosen["nested"] = artifact.identity(settings.nested)
    if pooling_name(settings.pooling) == LATENT_ATTENTION:
        chosen["latents"] = settings.latents
    if settings.prompts:
        chosen |= {"prompts": settings.prompts, "include_prompt": settings.include_prompt}
    if settings.template is not None:
        chosen["template"] = template_text(settings.template)
    if given_pairs:
        return chosen
    return chosen | tables.identity("builder", builder, getattr(settings.builders, builder), default="simcse")


def stages(config: ScionConfig, start: ChainStart) -> dict[str, Stage]:
    """The stages that train the embedder of a chain, by their folders, the last one last; runs nothing yet."""
    return {one.folder: stage(one.config, start, one.folder) for one in embed_stages.every(config, FOLDER)}


def stage(config: ScionConfig, start: ChainStart, folder: str = FOLDER) -> Stage:
    """One training of the embedder of a chain; runs nothing yet."""
    artifact_spec = spec(config, start, folder)
    return Stage(
        name=f"{folder} {start.name}",
        spec=artifact_spec,
        fill=lambda draft, report: fill(config, start, draft, report, folder),
        is_resumable=True,
        training_uri=artifact_spec.uri,
    )


def fill(config: ScionConfig, start: ChainStart, draft: Draft, report: Reporter, folder: str = FOLDER) -> str:
    """Trains and writes the embedder, from the newest checkpoint of a killed run. Returns a line for the user."""
    settings, cache = config.embed, storage.join(draft.uri, "source")
    if settings.model is None or settings.stages:
        model = require(_source(config, start), "embed" if settings.stages else "pretrain")
    else:
        model = _given_model(settings.model, config.at("hub"))
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    training = _training_pairs(config, testing, start, cache, report)
    rows_folder = storage.join(draft.uri, "pairs")
    task = _task(settings, model)
    task.check(prompts=training.prompts)
    manifest = shards.build(
        training,
        model,
        rows_folder,
        max_length=settings.max_length,
        actors=settings.actors,
        progress=report.part("tokenize pairs"),
        forms=task.forms,
        teacher=None if settings.teacher is None else partial(_teacher, settings.teacher),
        gpus=int(has_gpus() and settings.teacher is not None),
    )
    rows = _order(config, rows_folder, manifest, start.seed, report)
    heldout = heldout_pairs.choose(testing, settings.heldout_pairs, task) if testing else None
    result = train(config, settings.train, task, rows, spec(config, start, folder), draft, report, heldout)
    report("calibrate", 0, 1)
    calibration.add(draft.uri, training)
    for leftover in (cache, rows_folder):
        storage.remove(leftover)
    history = result["history"]
    draft.metrics = {"history": history, "weights": settings.train.export_origin, "retrieval": result["evaluations"]}
    draft.metrics |= {name: result[name] for name in ("changes", "devices")}
    model_card.write(draft.uri, _card(config, training, result["evaluations"]))
    first, last = history[0]["loss"], history[-1]["loss"]
    return (
        f"{settings.train.steps} steps on {len(training):,} pairs, loss {first:.3f} in the first, {last:.3f} in the last"
        + _accuracies(result["evaluations"], settings.train.steps)
    )


def _given_model(model: str, folder: str) -> str:
    """A model that every node can read, also later: one of the hub is copied to `folder`."""
    if "://" in model or os.path.isdir(model):
        return model
    uri = storage.join(folder, model.replace("/", "--"))
    if not storage.exists(storage.join(uri, "config.json")):
        with model_folder(model) as local, storage.local_output(uri) as copy:
            shutil.copytree(local, copy, ignore=shutil.ignore_patterns("config.json"), dirs_exist_ok=True)
            shutil.copy(os.path.join(local, "config.json"), copy)  # the last file says that all are there
    return uri


def _card(config: ScionConfig, training: pairs.Pairs, evaluations: dict[str, Any]) -> Card:
    """The card of the trained embedder."""
    settings = config.embed
    parents, data = model_card.origin(config)
    return Card(
        title=f"{os.path.basename(config.output.rstrip('/'))} embedder",
        made=f"A text embedder, trained on {len(training):,} pairs in {settings.train.steps} steps.",
        parents=parents,
        data=data,
        languages=tuple(training.langs),
        papers=tuple(OBJECTIVES[name].paper for name in settings.losses),
        test_pairs=config.test_pairs or "",
        retrieval=evaluations.get(str(settings.train.steps), {}),
    )


def _teacher(uri: str) -> shards.Encode:
    """The encoder in a folder, for an actor; on the GPU that Ray gives it, if it gives one."""
    embedder = Embedder.load_for_inference(uri)
    return lambda texts, side: embedder.encode(texts, prompt_name=side)


def _task(settings: EmbedConfig, model: str) -> ContrastiveTask:
    """The training of the model to an embedder."""
    return ContrastiveTask(
        model_uri=model,
        bidirectional=settings.bidirectional,
        latents=settings.latents,
        spec=EmbedderSpec(
            pooling=pooling_name(settings.pooling),
            max_length=settings.max_length,
            dimensions=settings.nested.widths,
            layers=settings.nested.exits,
            prompts=settings.prompts,
            include_prompt=settings.include_prompt,
            template=TEXT if settings.template is None else template_text(settings.template),
        ),
        objective=_objective(settings),
        chunk_tokens=settings.chunk_tokens or max(settings.max_length, CHUNK_TOKENS["gpu" if has_gpus() else "cpu"]),
        passes="cached" if settings.reduce == "once" else "cached_per_chunk",
    )


def _order(config: ScionConfig, folder: str, manifest: Manifest, seed: int, report: Reporter) -> OrderedRows:
    """The order of the pairs of all tasks. Notes which tasks are smaller than a batch, and how often they are read."""
    settings = config.embed
    sizes = {name: sum(shard.rows for shard in parts) for name, parts in manifest.streams.items()}
    weights = shares(sizes, settings.weights, settings.alpha, "embed")
    rows = order_rows(settings.train, folder, manifest, weights, seed, of_tasks=settings.batches)
    report.note(pretrain.describe_passes(rows.order.passes(settings.train.steps), settings.train.steps, "pairs"))
    small = [name for name, size in sizes.items() if size < settings.train.batch_size and weights[name]]
    if small and (len(sizes) == 1 or settings.batches == "one_task"):
        which = "there are" if len(sizes) == 1 else f"{', '.join(small)} have"
        report.note(f"{which} fewer pairs than a batch: a step has each of them several times")
    return rows


def _accuracies(retrieval: dict[str, Any], steps: int) -> str:
    """Accuracy@1 before and after, both ways; empty without test pairs."""
    if not retrieval:
        return ""
    before, after = (
        " / ".join(f"{retrieval[step][way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))
        for step in ("0", str(steps))
    )
    return f", accuracy@1 {before} to {after} on test pairs"


def _training_pairs(config: ScionConfig, testing: pairs.Pairs, start: ChainStart, cache: str, report: Reporter) -> pairs.Pairs:
    """The given pairs, refused if they overlap with `testing`; else pairs built from the training text, for all steps."""
    if config.pairs is not None:
        given = mine.pairs_of(require(mine.spec(config), "mine")) if config.embed.mined else config.pairs
        training = pairs.load(given, cache, key="pairs")
        pairs.check_disjoint(training, testing)
        pairs.check_learnable(training)
        _check_scores(config.embed, training)
        _check_negatives(config.embed, training)
        if training.empty_rows:
            report.note(f"{training.empty_rows:,} rows of pairs= are left out: one side has no text")
        return training
    settings = config.embed.train
    builder = getattr(config.embed.builders, config.embed.builder)
    made = builder(shard.training_text(config), settings.steps * settings.batch_size, start.seed)
    report.note(
        f"pairs= is not given, so {len(made):,} lines of the text are their own positives; dropout makes two views of each"
    )
    return made


def _check_scores(settings: EmbedConfig, training: pairs.Pairs) -> None:
    """Checks that there are scores if a loss follows them; else raises DataError."""
    followed = [name for name in settings.losses if getattr(settings.objectives, name).needs.scores]
    if any(math.isfinite(score) for scores in training.negative_scores for score in scores):
        return
    if any(map(math.isfinite, training.positive_scores)):
        followed = [name for name in followed if name != "dse"]  # the others compare the documents of a pair
    if followed:
        raise DataError(
            f"{followed[0]} follows a teacher's scores, and no row has negative_scores.",
            "pairs",
            "Add them, with negatives and positive_score, or take another embed.objective.",
        )


def _check_negatives(settings: EmbedConfig, training: pairs.Pairs) -> None:
    """Checks that some pair has the hard negatives that info_nce is asked to mix or to weigh; else raises DataError."""
    if "info_nce" not in settings.losses:
        return
    loss = settings.objectives.info_nce
    wanted = {"mixed_pairs": 2 * bool(loss.mixed_pairs), "mixed_list": 2 * loss.mixed_list}
    wanted["hardness_of"] = int(bool(loss.hardness) and loss.hardness_of == "hard")
    most = max(map(len, training.negatives), default=0)
    for name, least in wanted.items():
        if most < least:
            raise DataError(
                f"{name} needs {least} negatives of a pair, and no pair has more than {most}.",
                "pairs",
                f"Add negatives (`scion mine` finds some), or leave embed.objectives.info_nce.{name} out.",
            )


def needs_ray(config: ScionConfig) -> bool:
    """Whether there is something to train.

    Raises:
        ArtifactError: what it trains is not there.
    """
    if all([one.finished() is not None for one in stages(config, main_start(config)).values()]):
        return False
    if config.embed.model is None:
        require(pretrain.spec(config, main_start(config)), "pretrain")
    if config.embed.mined:
        require(mine.spec(config), "mine")
    return True


def main(config: ScionConfig, console: Console) -> None:
    for one in stages(config, main_start(config)).values():
        one.run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
