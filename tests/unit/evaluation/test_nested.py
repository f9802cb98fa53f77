"""A nested embedder is measured at each of its widths and depths."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import evaluate
from ray_jobs.report.score_tables import score_tables
from tests.conftest import FAMILIES, tiny_model
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.evaluation import METRICS
from trainer.evaluation.encoder import EncodesOnce, unit_rows
from trainer.evaluation.measured import Measured
from trainer.evaluation.nested import nested
from trainer.evaluation.retrieval import Retrieval


@pytest.fixture
def starts(english: list[str]) -> Pairs:
    anchors = english[:40]
    positives = [" ".join(text.split()[:6]) for text in anchors]
    return Pairs(ids=list(map(str, range(40))), anchors=anchors, positives=positives, negatives=[[]] * 40)


@pytest.fixture
def embedder(english: list[str]) -> Embedder:
    tokenizer = FAMILIES["wordpiece"](english)
    spec = EmbedderSpec(max_length=32, dimensions=(8, 4), layers=(1,), prompts={"query": "find: "})
    return Embedder(tiny_model(tokenizer).bert, tokenizer, spec)


class At:
    """The embedder at one width and depth, as a service asks it."""

    def __init__(self, embedder: Embedder, **at: int | None) -> None:
        self.embedder, self.at = embedder, at

    def encode(self, texts: list[str], *, prompt_name: str | None = None) -> np.ndarray:
        return self.embedder.encode(texts, **self.at, prompt_name=prompt_name)


def test_each_width_and_depth_scores_as_an_embedder_that_is_asked_for_it(embedder: Embedder, starts: Pairs) -> None:
    forms = nested(embedder, EncodesOnce(embedder), starts)["forms"]
    assert [(form["layers"], form["dimensions"]) for form in forms] == [
        (layers, width) for layers in (None, 1) for width in (32, 8, 4)
    ]
    for form in forms:
        expected = Retrieval()(At(embedder, layers=form["layers"], dimensions=form["dimensions"]), starts)
        assert form["retrieval"] == expected.scores
        assert form["texts_per_second"] > 0
    assert len({form["retrieval"]["forward"]["mrr_at_10"] for form in forms}) > 3


def test_a_cut_vector_is_of_unit_length_and_zeros_stay_zeros() -> None:
    vectors = np.array([[3.0, 4.0, 9.0], [0.0, 0.0, 1.0]], np.float32)
    assert np.allclose(unit_rows(vectors[:, :2]), [[0.6, 0.8], [0.0, 0.0]])


def test_only_nested_embedders_have_these_scores(embedder: Embedder, starts: Pairs, tmp_path) -> None:
    embedder.save(str(tmp_path / "nested"))
    embedder.spec = replace(embedder.spec, dimensions=(), layers=())
    embedder.save(str(tmp_path / "plain"))
    found = {
        model: evaluate.score._function(
            str(tmp_path / folder), starts, {"retrieval": METRICS["retrieval"].config()}, is_timed=True
        )
        for model, folder in (("source_model", "plain"), ("transferred_trained", "nested"))
    }
    metrics = evaluate.collect(found)
    assert list(metrics["nested"]) == ["transferred_trained"]
    assert set(metrics["retrieval"]) == set(metrics["speed"]) == {"source_model", "transferred_trained"}
    [table] = score_tables({"scores": {"nested": metrics["nested"]}})
    assert [row[1:3] for row in table.rows] == [[layers, width] for layers in ("all", "1") for width in ("32", "8", "4")]


def test_a_score_that_the_source_model_lacks_has_no_difference() -> None:
    values = {"spread": np.zeros(4)}
    found = {
        "source_model": {"retrieval": Measured(scores={"spread": 0.1}, replicates=values)},
        "merged": {name: Measured(scores={"spread": 0.2}, replicates=values) for name in ("retrieval", "other")},
    }
    assert set(evaluate.collect(found)["differences"]) == {"retrieval"}
