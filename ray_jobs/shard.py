"""`scion shard`: text and pairs to a new tokenizer and packed, held-out-safe shards."""

from itertools import chain

from rich.console import Console

from data_pipeline import artifact, storage
from data_pipeline.artifact import Draft, Plan
from data_pipeline.pairs import rows as pairs
from data_pipeline.shards import build, corpus
from data_pipeline.sources import documents
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import model_fingerprint
from ray_jobs.stage import Stage
from trainer.evaluation.fertility import fertility

KIND = "shards"


def plan(config: ScionConfig) -> Plan:
    inputs = {
        "text": documents.fingerprint(config.text, key="text"),
        "pairs": documents.fingerprint(config.pairs, key="pairs"),
        "test_pairs": documents.fingerprint(config.test_pairs, key="test_pairs"),
        "source_model": model_fingerprint(config.source_model, tokenizer_only=True),
    }
    if config.test_text is not None:
        inputs["test_text"] = documents.fingerprint(config.test_text, key="test_text")
    settings = {"shard": artifact.identity(config.shard), "seed": config.seed}
    return Plan(uri=config.at("shards"), kind=KIND, config=settings, inputs=inputs)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="shard", plan=plan(config), fill=lambda draft, report: fill(config, draft, report))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes `tokenizer/`, `text/{train,heldout}/`, `rows/` and `heldout/` with their manifests."""
    cache, settings = storage.join(draft.uri, "source"), config.shard
    with model_folder(config.source_model) as folder:
        source = train.load(folder)
    training = pairs.load(config.pairs, cache, key="pairs")
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    pairs.check_disjoint(training, testing)
    text = corpus.build(
        documents.resolve(config.text, cache, key="text"),
        None if config.test_text is None else documents.resolve(config.test_text, cache, key="test_text"),
        storage.join(draft.uri, "text"),
        fraction=settings.heldout, lang=settings.lang, seed=config.seed, actors=settings.actors,
        forbidden=chain(testing.anchors, testing.positives), progress=report.part("clean"),
    )  # fmt: skip
    report("train tokenizer", 0, 1)
    texts = (line for _, line in corpus.read_texts(text.train))
    tokenizer = train.train(source, chain(texts, training.anchors, training.positives), settings.tokenizer)
    with storage.local_output(storage.join(draft.uri, "tokenizer")) as folder:
        tokenizer.save_pretrained(folder)
    manifests = {
        name: build.build(
            parts, storage.join(draft.uri, "tokenizer"), storage.join(draft.uri, name),
            length=settings.length, actors=settings.actors, progress=report.part(f"pack {name}"),
        )
        for name, parts in (("rows", text.train), ("heldout", text.heldout))
    }  # fmt: skip
    storage.remove(cache)
    heldout = [line for _, line in corpus.read_texts(text.heldout)]
    rows = manifests["rows"]
    draft.metrics = {
        "documents": text.fates,
        "fertility": {"source": fertility(source, heldout), "target": fertility(tokenizer, heldout)},
        "rows": {name: manifest.total("rows") for name, manifest in manifests.items()},
        "tokens": rows.total("tokens"),
        "padding_share": rows.total("padding") / max(1, rows.total("rows") * rows.length),
        "dataset": rows.id,
    }
    return f"{rows.total('rows'):,} rows of {rows.length} tokens from {text.fates['train']:,} documents"


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)
