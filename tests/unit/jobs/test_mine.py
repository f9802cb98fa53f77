"""`scion mine` on one machine: what it writes is read at once, holds no positive, and is the same after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.artifact import Draft
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.pairs import text_pairs
from data_pipeline.pairs.shards import text_key
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import mine, preflight
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from tests.integration.conftest import write_rows
from tests.unit.mining.test_cross_encoder import teacher
from tests.unit.shards.test_sample import in_this_process
from trainer.embedder import Embedder
from trainer.mining import blocks
from trainer.mining.cross_encoder import CrossEncoder

COUNT = 90


@pytest.fixture
def config(tmp_path: Path, source_folder: str, pairs: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> ScionConfig:
    """Two positives for every sixth anchor, own negatives for the first pair, and a test sentence in the corpus."""
    rows: list[dict[str, Any]] = [
        {"id": str(number), "anchor": pairs[number - number % 6 % 2]["anchor"], "positive": pairs[number]["positive"],
         "negatives": ["an own negative"] if number == 0 else [], "task": "t", "prompt": "query: "}
        for number in range(COUNT)
    ]  # fmt: skip
    write_rows(tmp_path / "pairs.parquet", rows)
    write_rows(tmp_path / "test.parquet", [{"anchor": pairs[COUNT]["anchor"], "positive": pairs[COUNT]["positive"]}])
    write_rows(tmp_path / "corpus.parquet", [{"text": row["positive"]} for row in pairs[: 2 * COUNT]])
    (tmp_path / "c.yaml").write_text(
        f"pairs: {tmp_path}/pairs.parquet\ntest_pairs: {tmp_path}/test.parquet\noutput: {tmp_path}/run\n"
        f"mine: {{model: {source_folder}, corpus: {tmp_path}/corpus.parquet, first: 3, last: 30, relative_margin: null}}"
    )
    monkeypatch.setattr(mine, "ray_map", lambda function, jobs, **settings: in_this_process(function, jobs, **_setup(settings)))
    monkeypatch.setattr(mine, "has_gpus", lambda: False)
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(blocks.cut, "__defaults__", (64,))
    return load(str(tmp_path / "c.yaml"), [], "mine")


def _setup(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name == "setup"}


def run(config: ScionConfig, folder: Path) -> Pairs:
    mine.fill(config, Draft(uri=str(folder)), Reporter(lambda what, done, total: None))
    return text_pairs.load(mine.pairs_of(str(folder)), "", key="pairs")


def test_no_positive_and_no_test_sentence_is_a_negative(
    config: ScionConfig, tmp_path: Path, pairs: list[dict[str, str]]
) -> None:
    mined = run(config, tmp_path / "mined")
    positives: dict[str, set[int]] = {}
    for anchor, positive in zip(mined.anchors, mined.positives, strict=True):
        positives.setdefault(anchor, set()).add(text_key(positive))
    assert max(map(len, positives.values())) == 2
    for anchor, negatives, scores in zip(mined.anchors, mined.negatives, mined.negative_scores, strict=True):
        keys = [text_key(text) for text in negatives]
        assert not {*keys} & {*positives[anchor], text_key(anchor), text_key(pairs[COUNT]["positive"])}
        assert len({*keys}) == len(keys) == len(scores) == (6 if "an own negative" in negatives else 5)
        mined_scores = scores[len(keys) - 5 :]
        assert mined_scores == sorted(mined_scores, reverse=True)
    assert mined.negatives[0][0] == "an own negative"
    assert set(mined.tasks) == {"t"}
    assert set(mined.prompts) == {"query: "}


def test_an_interrupted_mining_keeps_its_blocks_and_ends_the_same(
    config: ScionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config, tmp_path / "whole")
    encoded: list[str] = []
    encode = blocks.encode

    def broken(job: dict[str, Any], embedder: Any) -> str:
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(job["uri"])
        return encode(job, embedder)

    monkeypatch.setattr(blocks, "encode", broken)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parted")
    assert all(storage.exists(uri) for uri in encoded)
    written: list[str] = []
    monkeypatch.setattr(blocks, "encode", encode)
    write = blocks.write
    monkeypatch.setattr(blocks, "write", lambda uri, arrays: (written.append(uri), write(uri, arrays)))
    assert repr(run(config, tmp_path / "parted")) == repr(whole)
    assert not set(written) & set(encoded)


def test_the_model_reads_its_prompts(config: ScionConfig, tmp_path: Path, pairs: list[dict[str, str]]) -> None:
    assert config.mine.model is not None
    embedder = Embedder.load(config.mine.model)
    embedder.spec = replace(embedder.spec, prompts={"query": pairs[80]["positive"], "passage": pairs[81]["positive"]})
    embedder.save(str(tmp_path / "prompted"))
    mined = run(load(str(tmp_path / "c.yaml"), [f"mine.model={tmp_path}/prompted"], "mine"), tmp_path / "mined")
    queries = embedder.encode(mined.queries[:9], prompt_name="query")
    documents = embedder.encode(mined.positives[:9], prompt_name="document")
    assert mined.positive_scores[:9] == pytest.approx((queries * documents).sum(axis=1).tolist(), abs=1e-4)


def test_a_vector_that_is_not_finite_is_no_neighbour_of_all(
    config: ScionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Embedder.encode

    def broken(*arguments: Any, **settings: Any) -> Any:
        vectors = encode(*arguments, **settings)
        vectors[3, 0] = np.nan
        return vectors

    monkeypatch.setattr(Embedder, "encode", broken)
    with pytest.raises(ModelError, match=r"mine\.model: the vector of a text is not finite"):
        run(config, tmp_path / "mined")


def test_a_teacher_s_scores_replace_the_cosines(config: ScionConfig, tmp_path: Path, english: list[str]) -> None:
    folder = teacher(tmp_path / "teacher", english)
    values = [f"mine.teacher={folder}", "mine.teacher_length=48", "mine.negatives=2"]
    scored = load(str(tmp_path / "c.yaml"), values, "mine")
    preflight.check(scored, "mine")
    mined = run(scored, tmp_path / "mined")
    model = CrossEncoder.load(folder, 48)
    assert mined.positive_scores[:9] == pytest.approx(model.score(mined.anchors[:9], mined.positives[:9]).tolist(), abs=1e-5)
    assert mined.negative_scores[4] == pytest.approx(model.score([mined.anchors[4]] * 2, mined.negatives[4]).tolist(), abs=1e-5)
    alone = run(load(str(tmp_path / "c.yaml"), [*values, "mine.negatives=0"], "mine"), tmp_path / "alone")
    assert alone.negatives[0] == ["an own negative"]
    assert alone.positive_scores == pytest.approx(mined.positive_scores, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (["mine.model=./none"], ConfigError, r"mine\.model=.*none: no such folder"),
        (["mine.teacher=./none", "mine.negatives=0"], ConfigError, r"mine\.teacher=.*none: no such folder"),
        (["mine.teacher={source}"], ModelError, r"it is a BertForMaskedLM, no cross-encoder"),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_work(
    values: list[str], error: type[Exception], message: str, config: ScionConfig, tmp_path: Path, source_folder: str
) -> None:
    with pytest.raises(error, match=message):
        preflight.check(
            load(str(tmp_path / "c.yaml"), [value.format(source=source_folder) for value in values], "mine"), "mine"
        )
