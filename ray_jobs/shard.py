"""`scion shard`: from text, and pairs, to a new tokenizer and packed shards."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerFast

from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.artifacts.cached_step import cached_step
from data_pipeline.errors import UserError
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.shards import build, corpus, manifest
from data_pipeline.shards.corpus import Corpus
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.sample import balanced_sample, thin
from data_pipeline.sources import documents
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.adopt import adopt
from ray_jobs.config.schema import ScionConfig, ShardConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.stage import Stage
from trainer.evaluation.fertility import by_language, fertility
from trainer.models import loading

JOB = Job(
    summary="text to a tokenizer and packed shards",
    reads="text, the tokenizer of source_model, and pairs where there are any",
    writes="OUTPUT/shards, or shards=FOLDER: tokenizer/, clean text/, packed rows/ and heldout/; manifests of hashes",
    keys=("text", "test_text", "pairs", "test_pairs", "source_model", "tokenizer", "shards", "shard"),
)
KIND = "shards"
_COMPARED = 200
"""Texts on which a given tokenizer is compared, before and after transformers loads it in the source model's folder."""
PARTS = ("rows", "heldout")
"""Folders of packed rows, each with a manifest."""


def spec(config: ScionConfig) -> Spec:
    inputs = data_fingerprints(config, "text", "test_text", "pairs", "test_pairs")
    inputs["source_model"] = model_fingerprint(config.source_model, tokenizer_only=True)
    if config.tokenizer is not None:
        inputs["tokenizer"] = model_fingerprint(config.tokenizer, key="tokenizer", tokenizer_only=True)
    settings = {"shard": artifact.identity(config.shard), "seed": config.seed}
    return Spec(uri=folder(config), kind=KIND, config=settings, inputs=inputs)


def folder(config: ScionConfig) -> str:
    """The folder of the shards."""
    return config.shards or config.at("shards")


def training_text(config: ScionConfig, rates: Mapping[str, float] | None = None) -> Iterable[tuple[str, str]]:
    """(language, text) of every clean training document, or of a share of each language."""
    home = storage.join(folder(config), "text", "train")
    paths = (storage.join(home, name) for name in storage.files(home))
    return corpus.read_texts(paths) if rates is None else thin(paths, rates, config.seed)


def stage(config: ScionConfig) -> Stage:
    """The stage that builds the corpus, the tokenizer and the packed shards; runs nothing yet."""
    artifact_spec = spec(config)
    return Stage(
        name="shard",
        spec=artifact_spec,
        fill=lambda draft, report: fill(config, draft, report),
        is_resumable=True,
        is_complete=lambda: not missing_files(artifact_spec.uri),
    )


def missing_files(uri: str) -> list[str]:
    """Files in the manifests of a folder of shards that do not exist."""
    there = set(storage.files(uri))
    named = [
        f"{part}/{shard.path}"
        for part in PARTS
        for shards in manifest.load(storage.join(uri, part)).streams.values()
        for shard in shards
    ]
    return [path for path in named if path not in there]


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes `tokenizer/`, `text/{train,heldout}/`, `rows/` and `heldout/` with their manifests.

    Returns a line for the user. Keeps what a killed run has finished; unusable input leaves nothing.
    """
    cache = storage.join(draft.uri, "source")
    try:
        manifests, text = _filled(config, draft, cache, report)
    except UserError:
        storage.clear(draft.uri, artifact.UNFINISHED)
        raise
    finally:
        storage.remove(cache)
    rows = manifests["rows"]
    if unused := unused_language_note(config.shard.lang, tuple(rows.streams)):
        report.note(unused)
    padding, cut = rows.share("padding"), rows.total("cut") / max(1, rows.total("documents"))
    draft.metrics |= {
        "documents": text.fates,
        "rows": {name: made.total("rows") for name, made in manifests.items()},
        "tokens": rows.total("tokens"),
        "padding_share": padding,
        "cut_share": cut,
        "dataset": rows.id,
        "source_model": config.source_model,
    }
    return (
        f"{rows.total('rows'):,} rows of {rows.length} tokens from {text.fates['train']:,} documents, "
        f"{padding:.1%} of the tokens are padding, {cut:.1%} of the documents go on in the next row"
    )


def unused_language_note(lang: str, found: tuple[str, ...]) -> str:
    """A line for the user if no document has the language that `shard.lang` names."""
    if lang in (ShardConfig().lang, *found):
        return ""
    return f"shard.lang={lang} is for documents that name no language; column lang of the text names {', '.join(found)}"


def _filled(config: ScionConfig, draft: Draft, cache: str, report: Reporter) -> tuple[dict[str, Manifest], Corpus]:
    """Cleans the text, makes the tokenizer, packs the rows, and measures the fertility."""
    settings, home = config.shard, storage.join(draft.uri, "tokenizer")
    training = pairs.load(config.pairs, cache, key="pairs")
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    pairs.check_disjoint(training, testing)
    key = {"plan": spec(config).id}
    with model_folder(config.source_model) as folder:
        source = train.load(folder)
        text = Corpus.from_relative(
            draft.uri, cached_step(draft.uri, "text.json", key, partial(_cleaned, config, draft.uri, cache, testing, report))
        )
        report("train tokenizer", 0, 1)
        make = partial(adopt_given_tokenizer if config.tokenizer else _train_tokenizer, config, source, text, training, report)
        draft.metrics["tokenizer"] = cached_step(draft.uri, "tokenizer.json", key, partial(_tokenizer, make, home))
    manifests = {
        name: build.build(
            parts,
            home,
            storage.join(draft.uri, name),
            length=settings.length,
            packing=settings.packing,
            actors=settings.actors,
            progress=report.part(f"pack {name}"),
        )
        for name, parts in zip(PARTS, (text.train, text.heldout), strict=True)
    }
    heldout = list(corpus.read_texts(text.heldout))
    of_both = {"source": source, "target": build.load_tokenizer(home)}
    draft.metrics["fertility"] = {side: fertility(one, (line for _, line in heldout)) for side, one in of_both.items()}
    draft.metrics["fertility_by_language"] = by_language(of_both, heldout)
    return manifests, text


TokenizerAndFacts = tuple[PreTrainedTokenizerFast, dict[str, Any]]
"""A tokenizer, and facts on how it was made."""


def _tokenizer(make: Callable[[], TokenizerAndFacts], home: str) -> tuple[dict[str, Any], list[str]]:
    """Saves the tokenizer of `make` in the folder `home`."""
    made, facts = make()
    with storage.local_output(home) as folder:
        made.save_pretrained(folder)
    return facts, [storage.join("tokenizer", name) for name in storage.files(home)]


def _train_tokenizer(
    config: ScionConfig, source: PreTrainedTokenizerFast, text: Corpus, training: pairs.Pairs, report: Reporter
) -> TokenizerAndFacts:
    """Trains a tokenizer like the source's on a language-balanced sample of the text and the pairs."""
    settings = config.shard.tokenizer
    sample = balanced_sample(
        text.train,
        chain(training.anchors, training.positives),
        alpha=settings.alpha,
        limit=settings.sample_bytes,
        seed=config.seed,
    )
    made = train.train(source, sample.texts, settings, report.note)
    return made, {"sample_bytes": sample.bytes, "corpus_bytes": sample.corpus_bytes, "texts": len(sample.texts)}


def adopt_given_tokenizer(
    config: ScionConfig, source: PreTrainedTokenizerFast, text: Corpus, training: pairs.Pairs, report: Reporter
) -> TokenizerAndFacts:
    """Adopts the tokenizer that the user gives, after checks against the source's and on some texts."""
    assert config.tokenizer is not None
    texts = [*training.positives[:_COMPARED], *(line for _, line in islice(corpus.read_texts(text.train), _COMPARED))]
    with model_folder(config.tokenizer) as folder:
        made = adopt(train.load(folder), source, texts, report.note)
    loading.check_pad_id(loading.model_config(config.source_model), made.pad_token_id)
    frame_of(made)
    return made, {"given": config.tokenizer}


def _cleaned(
    config: ScionConfig, uri: str, cache: str, testing: pairs.Pairs, report: Reporter
) -> tuple[dict[str, Any], list[str]]:
    """Makes the corpus below `uri`; returns it as JSON, and its files."""
    settings = config.shard
    made = corpus.build(
        documents.resolve(config.text, cache, key="text"),
        None if config.test_text is None else documents.resolve(config.test_text, cache, key="test_text"),
        storage.join(uri, "text"),
        fraction=settings.heldout,
        lang=settings.lang,
        seed=config.seed,
        actors=settings.actors,
        forbidden=chain(testing.anchors, testing.positives),
        progress=report.part("clean"),
        layout=keeps_layout(config),
    )
    answer = made.relative_to(uri)
    return answer, [*answer["train"], *answer["heldout"]]


def keeps_layout(config: ScionConfig) -> bool:
    """Whether the text keeps its layout."""
    given = config.shard.layout
    return loading.is_causal(loading.model_config(config.source_model)) if given is None else given


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
