"""Retrieval metrics against brute force."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from data_pipeline.pairs.text_pairs import Pairs, load
from trainer.evaluation import retrieval
from trainer.evaluation.fertility import fertility


def test_ranks_count_the_documents_that_score_higher() -> None:
    generator = np.random.default_rng(0)
    q, d = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in generator.normal(size=(2, 50, 5)).astype(np.float32))
    scores = retrieval.ranks(q, d, [f"query {i}" for i in range(50)], [f"text {i}" for i in range(50)])
    for i in range(50):
        order = sorted(range(50), key=lambda j: -float(q[i] @ d[j]))
        assert scores[i] == order.index(i) + 1
    metrics = retrieval.metrics(scores)
    assert metrics.accuracy_at_1 == np.mean([r == 1 for r in scores])
    assert np.isclose(metrics.mrr_at_10, np.mean([1 / r if r <= 10 else 0 for r in scores]))


@pytest.mark.parametrize("share", [0.0, 0.4, 0.97, 1.0])
def test_intervals_are_those_of_scipy(share: float) -> None:
    """Wilson's interval against its formula, the bootstrap against SciPy's."""
    draw, n, z = np.random.default_rng(1), 300, 1.959963984540054
    rank = np.where(draw.random(n) < share, 1, draw.integers(2, 15, n))
    scores, p = retrieval.metrics(rank), float((rank == 1).mean())
    middle, width = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)
    assert scores.accuracy_at_1_interval == pytest.approx(expected, abs=1e-12)
    if share < 1:  # SciPy refuses values that are all equal
        values = (np.where(rank <= 10, 1 / rank, 0.0),)
        theirs = stats.bootstrap(values, np.mean, n_resamples=9_999, method="percentile").confidence_interval
        assert scores.mrr_at_10_interval == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert scores.mrr_at_10_interval[0] <= scores.mrr_at_10 <= scores.mrr_at_10_interval[1]


def test_a_tie_counts_against_the_model_and_equal_texts_are_not_rivals() -> None:
    same = np.ones((3, 2), np.float32) / np.sqrt(2)
    asked = ["x", "y", "z"]
    assert retrieval.ranks(same, same, asked, ["a", "b", "c"]).tolist() == [3, 3, 3]
    assert retrieval.ranks(same, same, asked, ["a", "A ", "c"]).tolist() == [2, 2, 3]


def test_every_translation_of_a_sentence_is_correct() -> None:
    """An English sentence in two languages: the two translations are not rivals."""
    same = np.ones((3, 2), np.float32) / np.sqrt(2)
    assert retrieval.ranks(same, same, ["Open", "Open", "Close"], ["Άνοιγμα", "Aç", "Kapat"]).tolist() == [2, 2, 3]


def test_fertility_counts_pieces_words_and_characters(family, english) -> None:
    scores = fertility(family, english)
    pieces = sum(len(family(text, add_special_tokens=False).input_ids) for text in english)
    assert np.isclose(scores["pieces_per_word"], pieces / sum(len(text.split()) for text in english))
    assert scores["pieces_per_character"] < 1.01


class Known:
    """An embedder with fixed vectors."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self._vectors = vectors

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        return np.array([self._vectors[text] for text in texts], np.float32)


def test_a_language_is_searched_among_its_own_pairs() -> None:
    """Similar sentences in two languages: among all, each finds the other's translation first; in its language, its own."""
    vectors = {
        "a": [1, 0],
        "b": [0, 1],
        "like a": [1, 0],
        "like b": [0, 1],
        "el a": [0.8, 0.6],
        "el b": [0.6, 0.8],
        "tr a": [1, 0],
        "tr b": [0, 1],
    }
    pairs = Pairs(
        ids=list("1234"),
        anchors=["a", "b", "like a", "like b"],
        positives=["el a", "el b", "tr a", "tr b"],
        negatives=[[]] * 4,
        langs=["el", "el", "tr", "tr"],
    )
    measured = retrieval.Retrieval()(Known(vectors), pairs)
    whole, by_language = measured.scores, measured.by_language
    assert whole["forward"]["accuracy_at_1"] == 0.5
    assert {lang: ways["forward"]["accuracy_at_1"] for lang, ways in by_language.items()} == {"el": 1.0, "tr": 1.0}
    alone = Pairs(ids=["1"], anchors=["a"], positives=["el a"], negatives=[[]], langs=["el"])
    assert retrieval.Retrieval()(Known(vectors), alone).by_language == {}


def test_pairs_may_name_their_language(tmp_path) -> None:
    rows = [{"anchor": "a b", "positive": "c", "lang": "el"}, {"anchor": "d", "positive": "e", "lang": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    scores = load(str(tmp_path / "pairs.parquet"), str(tmp_path / "cache"), key="pairs")
    assert (scores.langs, scores.anchors) == (["el", "und"], ["a b", "d"])
