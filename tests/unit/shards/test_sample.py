"""A hundred synthetic languages with Zipf sizes: each has tokenizer text, held-out text and a score."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.order.mixture import temperature_weights
from data_pipeline.shards import corpus
from data_pipeline.shards.corpus import Corpus
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.sample import balanced_sample, sampling_rates, thin
from data_pipeline.tokenizers import train
from ray_jobs.config.schema import MixturePhase, PretrainConfig
from tests.conftest import byte_level
from trainer.evaluation.fertility import by_language
from trainer.tasks.heldout_text import HeldoutText

LANGS = [f"x{number:02d}" for number in range(100)]
SIZES = {lang: max(2, 900 // (place + 1)) for place, lang in enumerate(LANGS)}


def in_this_process(function: Callable[..., Any], jobs: list[Any], **settings: Any) -> list[Any]:
    extra = [settings["setup"]()] if settings.get("setup") else []
    return [function(job, *extra) for job in jobs]


def documents_of(lang: str, count: int) -> list[str]:
    """Texts of 60 words, with words and letters that no other language has."""
    draw = random.Random(lang)
    letters = [chr(0x4E00 + LANGS.index(lang) * 40 + place) for place in range(12)]
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(60)]
    return [" ".join(draw.choices(vocabulary, k=20)) for _ in range(count)]


@pytest.fixture(scope="module")
def zipf(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("zipf") / "text.jsonl"
    rows = [{"text": text, "lang": lang} for lang, size in SIZES.items() for text in documents_of(lang, size)]
    random.Random(0).shuffle(rows)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def build_corpus(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Corpus:
    monkeypatch.setattr(corpus, "ray_map", in_this_process)
    monkeypatch.setattr(corpus.documents, "UNIT_BYTES", 200_000)
    return corpus.build(
        [path], None, str(folder), fraction=0.05, lang="und", seed=seed, forbidden=(), actors=1, progress=lambda *_: None
    )


def test_every_language_has_held_out_text_and_training_text(zipf, tmp_path, monkeypatch) -> None:
    result = build_corpus(zipf, tmp_path, monkeypatch)
    train_part, heldout = (Counter(lang for lang, _ in corpus.read_texts(paths)) for paths in (result.train, result.heldout))
    assert set(heldout) == set(train_part) == set(LANGS)
    assert result.fates["train"] + result.fates["heldout"] + result.fates["duplicate"] == sum(SIZES.values())
    assert heldout["x00"] < 0.1 * SIZES["x00"]
    assert heldout["x99"] == 1
    texts = [{text for _, text in corpus.read_texts(paths)} for paths in (result.train, result.heldout)]
    assert not texts[0] & texts[1]


def test_the_only_document_of_a_language_goes_to_training(tmp_path, monkeypatch) -> None:
    path = tmp_path / "text.jsonl"
    rows = [{"text": f"word {number}", "lang": "big"} for number in range(99)] + [{"text": "alone", "lang": "one"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    result = build_corpus(str(path), tmp_path / "out", monkeypatch)
    assert ("one", "alone") in list(corpus.read_texts(result.train))


def manifest(rows: dict[str, int]) -> Manifest:
    def shard(lang: str, count: int) -> Shard:
        return Shard(
            path=f"{lang}/0",
            rows=count,
            tokens=count,
            text_tokens=count,
            text_bytes=4 * count,
            padding=0,
            documents=1,
            cut=0,
            sha256="",
        )

    return Manifest(length=32, vocab_size=9, tokenizer="", streams={lang: (shard(lang, n),) for lang, n in rows.items()})


def test_every_language_is_scored_and_a_single_one_as_before() -> None:
    rows = {lang: max(1, 300 // (place + 1)) for place, lang in enumerate(LANGS)}
    slots = HeldoutText(folder="", manifest=manifest(rows), task=None, rows=96).slots()  # type: ignore[arg-type]
    scored = Counter(slots.stream.tolist())
    assert set(scored) == set(range(100))
    assert all(scored[place] == min(4, size) for place, size in enumerate(rows.values()) if size < 30)
    assert all(row < rows[LANGS[stream]] for stream, row in zip(slots.stream.tolist(), slots.row.tolist(), strict=True))
    assert len({*zip(slots.stream.tolist(), slots.row.tolist(), strict=True)}) == len(slots)
    alone = HeldoutText(folder="", manifest=manifest({"el": 1000}), task=None, rows=96).slots()  # type: ignore[arg-type]
    assert alone.row.tolist() == np.unique(np.linspace(0, 999, 96).astype(np.int64)).tolist()


def test_the_sample_is_balanced_bounded_and_reproducible(zipf, tmp_path, monkeypatch) -> None:
    result = build_corpus(zipf, tmp_path, monkeypatch)
    sample = balanced_sample(result.train, ["more"], alpha=0.3, limit=10**9, seed=1)
    wanted = temperature_weights(sample.corpus_bytes, 0.3)
    total = sum(sample.corpus_bytes.values())
    for lang in LANGS:
        rate = min(8.0, wanted[lang] * total / sample.corpus_bytes[lang])
        assert abs(sample.bytes[lang] / sample.corpus_bytes[lang] - rate) < 0.5
    assert sample.texts == balanced_sample(result.train, ["more"], alpha=0.3, limit=10**9, seed=1).texts
    small = balanced_sample(result.train, [], alpha=0.3, limit=total // 10, seed=1)
    assert sum(small.bytes.values()) < 1.3 * total / 10
    assert sum(count > 0 for count in small.bytes.values()) > 60
    assert balanced_sample(result.train, ["more"], alpha=1.0, limit=10**9, seed=1).bytes == sample.corpus_bytes


def test_only_text_beyond_the_limit_is_thinned(zipf, tmp_path, monkeypatch) -> None:
    result = build_corpus(zipf, tmp_path, monkeypatch)
    whole = list(corpus.read_texts(result.train))
    sizes = Counter[str]()
    for lang, text in whole:
        sizes[lang] += len(text.encode())
    total = sizes.total()
    assert list(thin(result.train, sampling_rates(sizes, total), 1)) == whole
    rates = sampling_rates(sizes, total // 5)
    part = list(thin(result.train, rates, 1))
    assert sum(len(text.encode()) for _, text in part) < 1.1 * total / 5
    assert not Counter(part) - Counter(whole)
    assert rates[LANGS[0]] < 0.2 < rates[LANGS[80]]
    assert part == list(thin(result.train, rates, 1)) != list(thin(result.train, rates, 2))


def test_balanced_text_serves_small_languages(zipf, tmp_path, monkeypatch, english) -> None:
    result = build_corpus(zipf, tmp_path, monkeypatch)
    source, tokenizers = byte_level(english), {}
    for alpha in (1.0, 0.3):
        texts = balanced_sample(result.train, [], alpha=alpha, limit=10**9, seed=0).texts
        tokenizers[alpha] = train.train(source, texts, train.TokenizerConfig(vocab_size=4096, alpha=alpha))
    scores = by_language({"plain": tokenizers[1.0], "balanced": tokenizers[0.3]}, corpus.read_texts(result.heldout))
    assert set(scores) == set(LANGS)
    rare = [scores[lang] for lang in LANGS[50:]]
    pieces = {name: np.mean([one[name]["pieces_per_word"] for one in rare]) for name in ("plain", "balanced")}
    assert pieces["balanced"] < 0.9 * pieces["plain"]


def test_languages_are_mixed_with_a_temperature_by_default() -> None:
    assert PretrainConfig().alpha == MixturePhase(until=1).alpha == train.TokenizerConfig().alpha == 0.3
