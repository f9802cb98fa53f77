"""Classification, clustering and reranking against scikit-learn and pytrec-eval, and how their files are read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from data_pipeline.errors import DataError
from data_pipeline.pairs import candidates, graded_pairs, labelled_texts
from data_pipeline.pairs.candidates import Candidates
from data_pipeline.pairs.labelled_texts import LabelledTexts
from data_pipeline.sources import documents
from tests.unit.evaluation.test_ranked_pairs import Known
from trainer.evaluation import classification, clustering
from trainer.evaluation.probes import PROBES
from trainer.evaluation.reranking import reranking

TEXTS = [f"text {number}" for number in range(120)]
LABELS = ["common" if number % 4 else "rare" if number % 8 else "odd" for number in range(120)]


class Grouped(Known):
    """A vector that leans towards the label of its text."""

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        corners = {"common": 0, "rare": 1, "odd": 2}
        offsets = np.array([np.eye(6)[corners[LABELS[int(text.split()[1])]]] for text in texts])
        return (super().encode(texts) + 0.8 * offsets).astype(np.float32)


def test_a_probe_has_the_scores_of_scikit_learn() -> None:
    splits = ["train" if number < 80 else "test" for number in range(120)]
    ours = classification.classification(Grouped(), LabelledTexts(texts=TEXTS, labels=LABELS, splits=splits)).scores
    vectors = Grouped().encode(TEXTS).astype(np.float64)
    predicted = LogisticRegression(max_iter=1_000).fit(vectors[:80], LABELS[:80]).predict(vectors[80:])
    assert 0.5 < ours["accuracy"] < 1, "neither trivial nor hopeless"
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(LABELS[80:], predicted))
    assert ours["f1"] == pytest.approx(metrics.f1_score(LABELS[80:], predicted, average="macro"))
    assert (ours["train"], ours["test"], ours["labels"]) == (80, 40, 3)
    assert ours["f1_interval"][0] < ours["f1"] < ours["f1_interval"][1]


def test_the_f1_of_each_sample_is_that_of_scikit_learn() -> None:
    """Also on samples without one of the labels."""
    draw = np.random.default_rng(0)
    gold, predicted = draw.integers(0, 4, 12), draw.integers(0, 4, 12)
    places = draw.integers(0, 12, (50, 12))
    found = classification.measures(gold, predicted, classification._times_drawn(places))
    expected = [metrics.f1_score(gold[row], predicted[row], average="macro", zero_division=0.0) for row in places]
    assert found["f1"] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx([metrics.accuracy_score(gold[row], predicted[row]) for row in places])


def test_a_fifth_of_each_label_is_held_out_whatever_the_order() -> None:
    splits = classification.split(TEXTS, LABELS)
    shares = {
        label: [split for split, own in zip(splits, LABELS, strict=True) if own == label].count("test") for label in set(LABELS)
    }
    assert shares == {"common": 18, "rare": 3, "odd": 3}
    held_out = {text for text, split in zip(TEXTS, splits, strict=True) if split == "test"}
    backwards = classification.split(TEXTS[::-1], LABELS[::-1])
    assert held_out == {text for text, split in zip(TEXTS[::-1], backwards, strict=True) if split == "test"}
    assert classification.split(["a", "b", "c"], ["x", "x", "y"]).count("test") == 1, "a label of one text is learnt"


def test_clusters_are_compared_with_labels_by_v_measure() -> None:
    class Apart(Known):
        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return Grouped().encode(texts) - super().encode(texts) * 0.99

    labelled = LabelledTexts(texts=TEXTS, labels=LABELS)
    perfect, noisy = (clustering.clustering(model, labelled).scores for model in (Apart(), Known()))
    assert perfect["v_measure"] == pytest.approx(1.0)
    assert noisy["v_measure"] < 0.2
    assert noisy["v_measure"] == pytest.approx(np.mean(noisy["v_measures"]))
    assert len(set(noisy["v_measures"])) == 3, "three seeds"
    assert clustering.clustering(Known(), labelled).scores == noisy


def test_reranking_has_the_scores_of_trec_eval() -> None:
    draw = np.random.default_rng(3)
    sizes = draw.integers(1, 9, (40, 2))
    given = Candidates(
        queries=[f"query {number % 35}" for number in range(40)],
        positives=[[f"document {place}" for place in draw.integers(0, 60, count)] for count, _ in sizes],
        negatives=[[f"document {place}" for place in draw.integers(60, 200, count)] for _, count in sizes],
    )
    ours = reranking(Known(), given)
    run, judged = {}, {}
    for number, query in enumerate(given.queries):
        own = sorted({*given.positives[number], *given.negatives[number]})
        scores = Known().encode(own) @ Known().encode([query])[0]
        run[str(number)] = {text: float(score) for text, score in zip(own, scores, strict=True)}
        judged[str(number)] = dict.fromkeys(given.positives[number], 1)
    theirs = pytrec_eval.RelevanceEvaluator(judged, {"map", "recip_rank"}).evaluate(run)
    assert ours.scores["map"] == pytest.approx(np.mean([one["map"] for one in theirs.values()]), abs=1e-6)
    ranks = [one["recip_rank"] if one["recip_rank"] >= 0.1 else 0.0 for one in theirs.values()]
    assert ours.scores["mrr_at_10"] == pytest.approx(np.mean(ranks), abs=1e-6)
    assert ours.scores["queries"] == 40
    assert set(ours.replicates) == {"map", "mrr_at_10"}


def test_queries_and_documents_are_encoded_as_such() -> None:
    class Listening(Known):
        asked: tuple[str | None, ...] = ()

        def encode(self, texts: list[str], *, prompt_name: str | None = None) -> np.ndarray:
            self.asked += (prompt_name,)
            return super().encode(texts)

    model = Listening()
    reranking(model, Candidates(queries=["q"], positives=[["p"]], negatives=[["n"]]))
    assert model.asked == ("query", "document")


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_test_sets_are_read_from_both_formats(kind: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    labels = [
        {"text": "one", "label": 1},
        {"text": " two ", "label": 2},
        {"text": "", "label": 2},
        {"text": "none", "label": None},
    ]
    found = labelled_texts.load(write(tmp_path / f"a.{kind}", labels), cache, key="evaluate.clustering")
    assert found == LabelledTexts(texts=["one", "two"], labels=["1", "2"])
    ranked = [
        {"query": "q", "positive": ["p", " "], "negative": ["n", "m"]},
        {"query": "alone", "positive": ["p"], "negative": []},
    ]
    assert candidates.load(write(tmp_path / f"b.{kind}", ranked), cache, key="evaluate.reranking") == Candidates(
        queries=["q"], positives=[["p"]], negatives=[["n", "m"]]
    )
    words = [{"word1": "tiger", "word2": "cat", "score": 7.35}, {"word1": "king", "word2": "cabbage", "score": 0.23}]
    graded = graded_pairs.load(write(tmp_path / f"c.{kind}", words), cache, key="evaluate.sts")
    assert (graded.lefts, graded.rights, graded.scores) == (["tiger", "king"], ["cat", "cabbage"], [7.35, 0.23])


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("classification", [{"text": "a", "class": "x"}], "column label is missing"),
        ("classification", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "fewer than two labels"),
        ("clustering", [{"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}], "column label holds double, not text"),
        ("classification", [{"text": t, "label": t, "split": s} for t, s in zip("abc", ("train", "dev", "test"), strict=True)],
         "split holds 'dev'"),
        ("classification", [{"text": t, "label": t, "split": s} for t, s in zip("ab", ("train", "test"), strict=True)],
         "training texts of two labels"),
        ("reranking", [{"query": "a", "positive": "b", "negative": ["c"]}], "column positive holds string, not lists of text"),
        ("reranking", [{"query": "a", "positive": ["b"], "negative": [""]}], "no query has a positive and a negative"),
        ("reranking", [{"anchor": "a", "positive": ["b"], "negative": ["c"]}], "column query is missing"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_by_name(task: str, rows: list[dict], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", rows)
    with pytest.raises(DataError, match=message) as error:
        PROBES[task].load(path, str(tmp_path / "cache"), key=f"evaluate.{task}")
    assert f"evaluate.{task}=" in str(error.value)


def test_a_line_with_one_text_in_place_of_a_list_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"query": "a", "positive": "b", "negative": ["c"]}])
    with pytest.raises(DataError, match='positive in line 1 is "b", not a list of texts'):
        candidates.load(path, str(tmp_path / "cache"), key="evaluate.reranking")


def test_a_column_keeps_its_type_elsewhere(tmp_path: Path) -> None:
    """`positive` is a list for reranking, and a text in pairs."""
    path = write(tmp_path / "pairs.jsonl", [{"anchor": "a", "positive": "b"}])
    (unit,) = documents.units([path])
    read: Callable[..., pa.Table] = documents.read
    assert read(unit, ("anchor", "positive"), (), key="pairs").to_pylist() == [{"anchor": "a", "positive": "b"}]
