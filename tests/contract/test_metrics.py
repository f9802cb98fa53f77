"""Every metric of the table keeps the contract in `evaluation`."""

import json

import pytest

from data_pipeline.pairs.text_pairs import Pairs
from tests.conftest import tiny_model, wordpiece
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.evaluation import METRICS, Metric


@pytest.fixture(params=sorted(METRICS))
def metric(request: pytest.FixtureRequest) -> Metric:
    return METRICS[request.param].config()


@pytest.fixture(scope="module")
def embedder(english: list[str]) -> Embedder:
    tokenizer = wordpiece(english)
    return Embedder(tiny_model(tokenizer).bert, tokenizer, EmbedderSpec(max_length=32))


def some_pairs(pairs: list[dict], langs: list[str]) -> Pairs:
    rows = pairs[: 2 * len(langs) * 5]
    names = [langs[place % len(langs)] for place in range(len(rows))]
    return Pairs(
        ids=[str(place) for place in range(len(rows))],
        anchors=[row["anchor"] for row in rows],
        positives=[row["positive"] for row in rows],
        negatives=[[] for _ in rows],
        langs=names,
    )


def test_scores_are_json_and_the_same_again(metric: Metric, embedder: Embedder, pairs: list[dict]) -> None:
    given = some_pairs(pairs, ["el"])
    measured = metric(embedder, given)
    assert json.loads(json.dumps(measured.scores)) == measured.scores
    assert measured.by_language == {}
    again = metric(embedder, given)
    assert (again.scores, again.by_language) == (measured.scores, {})


def test_each_of_several_languages_has_its_scores(metric: Metric, embedder: Embedder, pairs: list[dict]) -> None:
    measured = metric(embedder, some_pairs(pairs, ["el", "tr"]))
    assert set(measured.by_language) == {"el", "tr"}
    assert all(set(one) == set(measured.scores) for one in measured.by_language.values())
