"""Measures of ranked documents against trec_eval, by pytrec-eval."""

import numpy as np
import pytest
import pytrec_eval

from trainer.evaluation import ranking

NAMES = {
    "ndcg_at_1": "ndcg_cut_1",
    "ndcg_at_10": "ndcg_cut_10",
    "map_at_5": "map_cut_5",
    "map_at_100": "map_cut_100",
    "recall_at_1": "recall_1",
    "recall_at_10": "recall_10",
    "precision_at_5": "P_5",
    "precision_at_30": "P_30",
    "accuracy_at_1": "success_1",
    "accuracy_at_10": "success_10",
    "mrr_at_100": "recip_rank",
}
MEASURES = {"ndcg_cut.1,10", "map_cut.5,100", "recall.1,10", "P.5,30", "success.1,10", "recip_rank"}


def random_run(draw: np.random.Generator) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Scores of few distinct values, graded judgements of some documents, and documents that the run lacks."""
    documents = [f"d{number}" for number in draw.permutation(60)]
    run, judgements = {}, {}
    for query in map(str, range(3)):
        ranked = draw.choice(documents, draw.integers(1, 50), replace=False)
        run[query] = {name: float(score) for name, score in zip(ranked, draw.integers(0, 6, len(ranked)) / 7, strict=True)}
        judged = draw.choice(documents, draw.integers(1, 30), replace=False)
        judgements[query] = {name: int(grade) for name, grade in zip(judged, draw.integers(0, 4, len(judged)), strict=True)}
    return run, judgements


def test_every_measure_is_that_of_trec_eval() -> None:
    """1,000 random runs; each also as a matrix of scores."""
    draw = np.random.default_rng(0)
    for _ in range(1_000):
        run, judgements = random_run(draw)
        theirs = pytrec_eval.RelevanceEvaluator(judgements, MEASURES).evaluate(run)
        scores = ranking.measure(ranking.rank_run(run, judgements, 100), NAMES)
        for name, their_name in NAMES.items():
            assert scores[name] == pytest.approx([theirs[query][their_name] for query in judgements], abs=1e-12), name


def test_a_cutoff_of_mrr_is_a_shorter_run() -> None:
    draw = np.random.default_rng(1)
    for _ in range(100):
        run, judgements = random_run(draw)
        short = {
            query: dict(sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)[:4])
            for query, scores in run.items()
        }
        theirs = pytrec_eval.RelevanceEvaluator(judgements, {"recip_rank"}).evaluate(short)
        ours = ranking.measure(ranking.rank_run(run, judgements, 100), ["mrr_at_4"])["mrr_at_4"]
        assert ours == pytest.approx([theirs[query]["recip_rank"] for query in judgements], abs=1e-12)


@pytest.mark.parametrize("depth", [1, 7, 100])
def test_a_matrix_of_scores_is_ranked_as_a_run(depth: int) -> None:
    draw = np.random.default_rng(2)
    ids = sorted((f"d{number}" for number in range(40)), reverse=True)
    scores = draw.integers(0, 5, (20, 40)) / 3
    judgements = {str(query): {ids[place]: int(draw.integers(0, 3)) for place in range(0, 40, 3)} for query in range(20)}
    run = {query: dict(zip(ids, map(float, row), strict=True)) for query, row in zip(judgements, scores, strict=True)}
    of_run = ranking.rank_run(run, judgements, depth)
    of_matrix = ranking.rank_scores(scores, ids, list(judgements.values()), depth)
    halves = [
        ranking.rank_scores(scores[part], ids, list(judgements.values())[part], depth) for part in (slice(0, 9), slice(9, 20))
    ]
    for other in (of_matrix, ranking.concatenate(halves)):
        assert np.array_equal(of_run.found, other.found)
        assert np.array_equal(of_run.ideal, other.ideal)


def test_scores_that_are_equal_in_fp32_are_ties() -> None:
    run = {"q": {"a": 1.0 + 1e-12, "b": 1.0}}
    theirs = pytrec_eval.RelevanceEvaluator({"q": {"b": 1}}, {"recip_rank"}).evaluate(run)
    ours = ranking.measure(ranking.rank_run(run, {"q": {"b": 1}}, 2), ["mrr_at_2"])["mrr_at_2"]
    assert ours.tolist() == [theirs["q"]["recip_rank"]] == [1.0]


def test_a_query_without_a_run_or_without_relevant_documents_scores_zero() -> None:
    ranked = ranking.rank_run({"q": {"a": 1.0}}, {"q": {"a": 0, "b": -1}, "lost": {"a": 1}}, 5)
    assert all(not values.any() for values in ranking.measure(ranked, NAMES).values())
