"""`scion transfer`: the source model with the new vocabulary, its rows started by a method."""

from rich.console import Console

from data_pipeline import artifact, storage
from data_pipeline.artifact import Draft, Plan
from data_pipeline.pairs import rows as pairs
from data_pipeline.shards import corpus
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.sources import documents
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from ray_jobs import shard
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import model_fingerprint
from ray_jobs.stage import Stage, Start, need, transferred
from trainer.models import loading
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS
from trainer.transfer.problem import Problem, Texts, assemble

KIND = "model"


def plan(config: ScionConfig, start: Start) -> Plan:
    settings = {
        "method": start.method,
        "copy_shared": config.transfer.copy_shared,
        "settings": artifact.identity(getattr(config.transfer.methods, start.method)),
        "seed": config.seed,
    }
    inputs = {
        "shards": shard.plan(config).id,
        "source_model": model_fingerprint(config.source_model),
        "pairs": documents.fingerprint(config.pairs, key="pairs"),
    }
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
    training = pairs.load(config.pairs, storage.join(draft.uri, "source"), key="pairs")
    parts = [storage.join(shards, "text", "train", name) for name in storage.files(storage.join(shards, "text", "train"))]
    texts = Texts(
        corpus=lambda: (text for _, text in corpus.read_texts(parts)),
        anchors=training.anchors,
        positives=training.positives,
    )
    tokenizer = load_tokenizer(storage.join(shards, "tokenizer"))
    with model_folder(config.source_model) as folder:
        source, model = train.load(folder), loading.masked_lm(folder, config.seed)
    problem = Problem(source, tokenizer, texts, config.seed, config.transfer.copy_shared)
    report(start.method, 1, 3)
    entry = METHODS[start.method]
    made = assemble(problem, entry.rows(problem, getattr(config.transfer.methods, start.method)), start.method)
    report("apply", 2, 3)
    graft(model, made, tokenizer)
    with storage.local_output(draft.uri) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    made.save(draft.uri)
    storage.remove(storage.join(draft.uri, "source"))
    fates = made.fates()
    draft.metrics = {"provenance": fates, "paper": entry.paper, "parameters": loading.parameters(model)}
    return " · ".join(f"{count:,} {fate.replace('_', ' ')}" for fate, count in fates.items())


def main(config: ScionConfig, console: Console) -> None:
    stage(config, transferred(config)).run(console)
