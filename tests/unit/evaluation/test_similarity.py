"""Correlations with gold scores against SciPy and sentence-transformers, and how the pairs are read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sentence_transformers import SimilarityFunction
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from data_pipeline.errors import DataError
from data_pipeline.pairs.graded_pairs import GradedPairs, load
from tests.unit.evaluation.test_ranked_pairs import Known
from trainer.evaluation.similarity import scores, similarity

ROWS = [
    {"sentence1": f"left {number}", "sentence2": f"right {number}", "score": number % 6, "lang": ("el", "tr")[number % 2]}
    for number in range(60)
]


class TheirModel(Known):
    """What the evaluator of sentence-transformers asks of a model."""

    similarity_fn_name = "cosine"


def graded(rows: list[dict]) -> GradedPairs:
    return GradedPairs(
        lefts=[row["sentence1"] for row in rows],
        rights=[row["sentence2"] for row in rows],
        scores=[float(row["score"]) for row in rows],
        langs=[row["lang"] for row in rows],
    )


def test_correlations_are_those_of_sentence_transformers() -> None:
    pairs = graded(ROWS)
    evaluator = EmbeddingSimilarityEvaluator(
        pairs.lefts, pairs.rights, pairs.scores, main_similarity=SimilarityFunction.COSINE, write_csv=False
    )
    evaluator.store_metrics_in_model_card_data = lambda *_, **__: None
    found = evaluator(TheirModel())
    ours = similarity(Known(), pairs).scores
    assert ours["spearman"] == pytest.approx(found["spearman_cosine"], abs=1e-6)
    assert ours["pearson"] == pytest.approx(found["pearson_cosine"], abs=1e-6)


def test_correlations_and_intervals_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    gold = draw.integers(0, 6, 300).astype(float)
    cosines = gold / 9 + draw.normal(size=300) / 4
    found, _ = scores(cosines, gold)
    for name, theirs in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        assert found[name] == pytest.approx(theirs(cosines, gold).statistic, abs=1e-12)
        interval = stats.bootstrap(
            (cosines, gold), lambda *both, one=theirs: one(*both).statistic, paired=True, n_resamples=1_999,
            method="percentile", vectorized=False, rng=0,
        ).confidence_interval  # fmt: skip
        assert found[f"{name}_interval"] == pytest.approx((interval.low, interval.high), abs=0.01)


def test_vectors_that_do_not_vary_correlate_with_nothing() -> None:
    found, _ = scores(np.ones(9), np.arange(9.0))
    assert (found["spearman"], found["pearson"], found["pearson_interval"]) == (0.0, 0.0, [0.0, 0.0])
    assert json.loads(json.dumps(found)) == found


def test_a_correlation_is_at_most_one() -> None:
    gold = np.array([4.5, 0.0, 4.0, 3.0])
    found, _ = scores(gold / 7, gold)
    assert found["pearson"] == pytest.approx(1.0)
    assert max(found["pearson"], *found["spearman_interval"], *found["pearson_interval"]) <= 1.0


def test_each_language_has_its_scores() -> None:
    by_language = similarity(Known(), graded(ROWS)).by_language
    alone = similarity(Known(), graded([row for row in ROWS if row["lang"] == "tr"]))
    assert by_language["tr"] == alone.scores
    assert (set(by_language), alone.by_language) == ({"el", "tr"}, {})


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_graded_pairs_are_read_from_both_formats(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"sts.{kind}"
    rows = [
        *ROWS,
        {"sentence1": " ", "sentence2": "empty", "score": 1},
        {"sentence1": "no", "sentence2": "score", "score": None},
    ]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert load(str(path), str(tmp_path / "cache"), key="evaluate.sts") == graded(ROWS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "score in line 1 is \"high\", not a number"),
        ({"sentence1": "a", "sentence2": "b", "score": True}, "not a number"),
        ({"sentence1": "a", "sentence2": "b"}, "column score is missing"),
        ({"sentence1": "a", "sentence2": "b", "score": 3}, "different scores"),
    ],
)  # fmt: skip
def test_wrong_rows_are_named(row: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sts.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message) as error:
        load(str(path), str(tmp_path / "cache"), key="evaluate.sts")
    assert "evaluate.sts=" in str(error.value)


def test_a_pair_whose_score_is_no_number_is_skipped(tmp_path: Path) -> None:
    """pandas writes a missing number as NaN."""
    table = pa.table({"sentence1": list("abc"), "sentence2": list("def"), "score": [1.0, float("nan"), 2.0]})
    pq.write_table(table, tmp_path / "sts.parquet")
    assert load(str(tmp_path / "sts.parquet"), str(tmp_path / "cache"), key="evaluate.sts").scores == [1.0, 2.0]


def test_a_column_of_text_is_no_score(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence1": ["a"], "sentence2": ["b"], "score": ["5"]}), tmp_path / "sts.parquet")
    with pytest.raises(DataError, match="column score holds string, not numbers"):
        load(str(tmp_path / "sts.parquet"), str(tmp_path / "cache"), key="evaluate.sts")
