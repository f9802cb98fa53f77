"""`scion transfer`: the source model with the new vocabulary, its rows started by a method."""

from rich.console import Console
from transformers import PreTrainedTokenizerFast

from cluster.ray_spread import RaySpread
from data_pipeline import artifact, storage
from data_pipeline.artifact import Draft, Plan
from data_pipeline.errors import ArtifactError
from data_pipeline.pairs import rows as pairs
from data_pipeline.shards import corpus
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.sources import documents
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.canonical import vocabulary_hash
from ray_jobs import shard
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import given_files, model_fingerprint
from ray_jobs.stage import Stage, Start, need, transferred
from trainer.models import loading
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS
from trainer.transfer.plan import TransferPlan
from trainer.transfer.plan import load as load_plan
from trainer.transfer.problem import Problem, Texts, assemble

KIND = "model"


def plan(config: ScionConfig, start: Start) -> Plan:
    own = getattr(config.transfer.methods, start.method)
    settings = {
        "method": start.method,
        "copy_shared": config.transfer.copy_shared,
        "match": list(config.transfer.match),
        "settings": artifact.identity(own),
        "seed": config.seed,
    }
    inputs = {
        "shards": shard.plan(config).id,
        "source_model": model_fingerprint(config.source_model),
        "pairs": documents.fingerprint(config.pairs, key="pairs"),
        **dict(given_files(own)),
    }
    if config.transfer.plan is not None and start.name == "transferred":
        inputs["plan"] = storage.fingerprint(storage.join(config.transfer.plan, "plan.safetensors"))
    return Plan(uri=start.at(config, "transfer"), kind=KIND, config={"transfer": settings}, inputs=inputs)


def stage(config: ScionConfig, start: Start) -> Stage:
    return Stage(
        name=f"transfer {start.method}",
        plan=plan(config, start),
        fill=lambda draft, report: fill(config, start, draft, report),
    )


def fill(config: ScionConfig, start: Start, draft: Draft, report: Reporter) -> str:
    """Writes a Hugging Face folder, and the plan that it was made by."""
    shards = need(shard.plan(config), "shard")
    report("read", 0, 3)
    tokenizer = load_tokenizer(storage.join(shards, "tokenizer"))
    with model_folder(config.source_model) as folder:
        source, model = train.load(folder), loading.language_model(folder, config.seed)
    report(start.method, 1, 3)
    texts = _texts(config, shards, storage.join(draft.uri, "source"))
    problem = _problem(config, start, source, tokenizer, texts, report)
    given = config.transfer.plan if start.name == "transferred" else None
    made = _made(config, start, problem) if given is None else _earlier(given, problem)
    report("apply", 2, 3)
    graft(model, made, tokenizer)
    with storage.local_output(draft.uri) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    made.save(draft.uri)
    storage.remove(storage.join(draft.uri, "source"))
    fates = made.fates()
    draft.metrics = {"provenance": fates, "paper": METHODS[made.method].paper, "parameters": loading.parameters(model)}
    return " · ".join(f"{count:,} {fate.replace('_', ' ')}" for fate, count in fates.items())


def _texts(config: ScionConfig, shards: str, cache: str) -> Texts:
    training = pairs.load(config.pairs, cache, key="pairs")
    parts = [storage.join(shards, "text", "train", name) for name in storage.files(storage.join(shards, "text", "train"))]
    return Texts(
        corpus=lambda: (text for _, text in corpus.read_texts(parts)),
        anchors=training.anchors,
        positives=training.positives,
    )


def _problem(
    config: ScionConfig,
    start: Start,
    source: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    texts: Texts,
    report: Reporter,
) -> Problem:
    settings = config.transfer
    spread = RaySpread(int(settings.max_memory * 2**30), report.note, report.part(start.method))
    return Problem(source, target, texts, config.seed, settings.copy_shared, settings.match, spread)


def _made(config: ScionConfig, start: Start, problem: Problem) -> TransferPlan:
    rows = METHODS[start.method].rows(problem, getattr(config.transfer.methods, start.method))
    return assemble(problem, rows, start.method)


def _earlier(uri: str, problem: Problem) -> TransferPlan:
    """A plan that another run has made.

    Raises:
        ArtifactError: there is none, or it is for other tokenizers.
    """
    found = load_plan(uri)
    for side, made_for, here in (
        ("source", found.source_tokenizer, problem.source), ("new", found.target_tokenizer, problem.target)
    ):  # fmt: skip
        if made_for != vocabulary_hash(here):
            raise ArtifactError(
                f"the plan was made for another {side} tokenizer.",
                f"transfer.plan={uri}",
                "Use the models, text and seed that it was made with; only the weights may be others.",
            )
    return found


def main(config: ScionConfig, console: Console) -> None:
    """Makes the shards first where they are missing: the new vocabulary is part of them."""
    shard.stage(config).run(console)
    stage(config, transferred(config)).run(console)
