"""Rankings of text pairs against the evaluator of sentence-transformers; bootstrap intervals against SciPy's."""

import numpy as np
import pytest
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from data_pipeline.pairs.text_pairs import Pairs
from trainer.evaluation import METRICS, bootstrap, similarity
from trainer.evaluation.encoder import EncodesOnce
from trainer.evaluation.measured import Measured, differences
from trainer.evaluation.ranked_pairs import RankedPairs


class Known:
    """An embedder with a fixed random vector for each text."""

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).normal(size=6) for text in texts]
        vectors = np.array(rows, np.float32).reshape(-1, 6)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def some_pairs(count: int, langs: tuple[str, ...] = ("el",)) -> Pairs:
    """Anchors and positives that repeat, and hard negatives."""
    numbers = range(count)
    return Pairs(
        ids=list(map(str, numbers)),
        anchors=[f"anchor {number % (count - 20)}" for number in numbers],
        positives=[f"positive {number % (count - 10)}" for number in numbers],
        negatives=[[f"negative {number}"] * (number % 3) for number in numbers],
        langs=[langs[number % len(langs)] for number in numbers],
    )


def judged(queries: list[str], answers: list[str]) -> dict[str, set[str]]:
    return {query: {a for q, a in zip(queries, answers, strict=True) if q == query} for query in queries}


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_scores_are_those_of_sentence_transformers(way: str) -> None:
    pairs = some_pairs(150)
    sides = (pairs.anchors, pairs.positives) if way == "forward" else (pairs.positives, pairs.anchors)
    others = [text for texts in pairs.negatives for text in texts] if way == "forward" else []
    evaluator = InformationRetrievalEvaluator(
        queries={text: text for text in sides[0]},
        corpus={text: text for text in [*sides[1], *others]},
        relevant_docs=judged(*sides),
        mrr_at_k=[10], ndcg_at_k=[10], accuracy_at_k=[1], precision_recall_at_k=[10, 100], map_at_k=[100],
    )  # fmt: skip
    vectors = {"query": Known().encode(evaluator.queries), "corpus": Known().encode(evaluator.corpus)}
    scores = vectors["query"] @ vectors["corpus"].T
    hits = [
        [{"corpus_id": evaluator.corpus_ids[place], "score": float(row[place])} for place in np.argsort(-row)[:100]]
        for row in scores
    ]
    theirs = evaluator.compute_metrics(hits)
    ours = RankedPairs()(Known(), pairs).scores[way]
    expected = {
        "ndcg_at_10": theirs["ndcg@k"][10],
        "mrr_at_10": theirs["mrr@k"][10],
        "map_at_100": theirs["map@k"][100],
        "accuracy_at_1": theirs["accuracy@k"][1],
        "recall_at_10": theirs["recall@k"][10],
        "recall_at_100": theirs["recall@k"][100],
    }
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert (ours["queries"], ours["documents"]) == (len(evaluator.queries), len(evaluator.corpus))
    assert all(ours[f"{name}_interval"][0] <= ours[name] <= ours[f"{name}_interval"][1] for name in expected)


def test_a_hard_negative_is_a_document() -> None:
    """The negative has the vector of the anchor, so it comes first."""

    class Copies(Known):
        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return super().encode(["anchor" if text == "negative" else text for text in texts])

    pairs = Pairs(ids=["1"], anchors=["anchor"], positives=["positive"], negatives=[["negative"]], langs=["el"])
    ways = RankedPairs()(Copies(), pairs).scores
    assert [ways[way]["mrr_at_10"] for way in ("forward", "backward")] == [0.5, 1.0]
    assert [ways[way]["documents"] for way in ("forward", "backward")] == [2, 1]


def test_a_language_is_searched_among_its_own_pairs() -> None:
    pairs = some_pairs(60, ("el", "tr"))
    measured = RankedPairs()(Known(), pairs)
    whole, by_language = measured.scores, measured.by_language
    own = [place for place, lang in enumerate(pairs.langs) if lang == "tr"]
    parts = {name: [getattr(pairs, name)[place] for place in own] for name in ("ids", "anchors", "positives", "negatives")}
    assert by_language["tr"] == RankedPairs()(Known(), Pairs(**parts, langs=["tr"] * len(own))).scores != whole


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).random(200) ** 2
    ours = bootstrap.intervals(bootstrap.means({"mean": values}))["mean_interval"]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9_999, method="percentile").confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_samples_are_the_same_for_every_model() -> None:
    """A model that is better by 0.1 on each query is so on each sample, to the bit."""
    values = np.random.default_rng(1).integers(0, 8, 64) / 8
    places = np.concatenate(list(bootstrap.samples(64)))
    assert places.shape == (bootstrap.SAMPLES, 64)
    assert set(np.unique(places)) == set(range(64))
    assert np.array_equal(places, np.concatenate(list(bootstrap.samples(64))))
    base, better = (
        Measured(scores={"gain": own.mean()}, replicates=bootstrap.means({"gain": own})) for own in (values, values + 0.125)
    )
    assert differences(better, base)["gain"] == {"difference": 0.125, "interval": [0.125, 0.125], "is_significant": True}
    assert not differences(base, base)["gain"]["is_significant"]


def test_metrics_share_the_vectors_of_a_list_of_texts() -> None:
    class Counting(Known):
        calls = 0

        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            self.calls += 1
            return super().encode(texts)

    embedder, pairs = Counting(), some_pairs(40)
    once = EncodesOnce(embedder)
    scores = [METRICS[name].config()(once, pairs).scores for name in METRICS]
    assert embedder.calls == 3, "anchors, positives and negatives"
    assert scores == [METRICS[name].config()(Known(), pairs).scores for name in METRICS]


def test_the_interval_of_a_difference_is_that_of_a_paired_bootstrap() -> None:
    """Of Spearman's correlation of two models on the same pairs, against SciPy's bootstrap of the difference."""
    draw = np.random.default_rng(2)
    gold, noise = draw.normal(size=150), draw.normal(size=(2, 150))
    models = [gold + noise[0], gold + 0.9 * noise[0] + 0.4 * noise[1]]
    measured = [similarity.scores(one, gold) for one in models]
    found = differences(*(Measured(scores=scores, replicates=replicates) for scores, replicates in measured))["spearman"]

    def gap(*columns: np.ndarray) -> float:
        return stats.spearmanr(columns[0], columns[2]).statistic - stats.spearmanr(columns[1], columns[2]).statistic

    theirs = stats.bootstrap(
        (*models, gold), gap, paired=True, n_resamples=1_999, method="percentile", vectorized=False, rng=0
    ).confidence_interval
    assert found["difference"] == pytest.approx(gap(*models, gold), abs=1e-12)
    assert found["interval"] == pytest.approx((theirs.low, theirs.high), abs=0.01)
    alone = [scores["spearman_interval"] for scores, _ in measured]
    assert found["interval"][1] - found["interval"][0] < min(high - low for low, high in alone), "pairing sharpens"


@pytest.mark.parametrize("name", ["retrieval", "ranking"])
def test_a_model_does_not_differ_from_itself(name: str) -> None:
    measured = METRICS[name].config()(Known(), some_pairs(60))
    found = differences(measured, measured)
    assert set(found) == {"forward", "backward"}
    for way in found.values():
        assert all(one == {"difference": 0.0, "interval": [0.0, 0.0], "is_significant": False} for one in way.values())
        assert "accuracy_at_1" in way
