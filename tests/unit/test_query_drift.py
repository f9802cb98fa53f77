"""Compensation of query drift against drifts that are known, and the form for an index."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipeline.errors import ConfigError
from data_pipeline.pairs.text_pairs import Pairs
from trainer import query_drift
from trainer.evaluation import drift

N, WIDTH = 400, 12


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rotation(seed: int) -> np.ndarray:
    """Of all dimensions, three at a time."""
    matrix = np.zeros((WIDTH, WIDTH))
    for start in range(0, WIDTH, 3):
        matrix[start : start + 3, start : start + 3] = Rotation.random(random_state=seed + start).as_matrix()
    return matrix


def ranking(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ documents.T), axis=1)


def test_a_constant_drift_is_undone_by_the_mean() -> None:
    queries, documents = unit(N, 0), unit(50, 1)
    drifted = queries + np.linspace(-0.5, 0.5, WIDTH)
    assert (ranking(drifted, documents) != ranking(queries, documents)).mean() > 0.5
    moved = query_drift.fit("mean", drifted, queries).queries(drifted)
    assert (ranking(moved, documents) == ranking(queries, documents)).mean() > 0.999
    assert np.allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)


def test_a_rotation_is_undone_by_procrustes_and_not_by_the_mean() -> None:
    queries, documents = unit(N, 0), unit(50, 1)
    drifted = queries @ rotation(3)
    right = ranking(queries, documents)[:, 0]
    assert (ranking(query_drift.fit("procrustes", drifted, queries).queries(drifted), documents)[:, 0] == right).all()
    assert (ranking(query_drift.fit("mean", drifted, queries).queries(drifted), documents)[:, 0] == right).mean() < 0.5


def test_a_linear_map_is_undone_best_by_ridge() -> None:
    queries = unit(N, 0)
    drifted = queries @ (rotation(3) * np.linspace(0.4, 1.6, WIDTH)) + 0.1
    unseen = unit(N, 5)
    theirs = unseen @ (rotation(3) * np.linspace(0.4, 1.6, WIDTH)) + 0.1
    cosines = {
        kind: (query_drift.fit(kind, drifted, queries).queries(theirs) * unseen).sum(axis=1).mean()
        for kind in query_drift.KINDS
    }
    assert cosines["ridge"] > 0.98
    assert cosines["ridge"] > cosines["procrustes"] > cosines["mean"]


def test_the_ridge_solves_its_least_squares() -> None:
    """By the stacked system of scikit-learn: the target is the change from the identity."""
    from sklearn.linear_model import Ridge

    new, old = unit(N, 0), unit(N, 1) + 0.2
    x = new - new.mean(axis=0)
    strength = 0.1 * np.trace(x.T @ x / N) / WIDTH
    model = Ridge(alpha=strength * N, tol=1e-12).fit(new, old - new)
    fitted = query_drift.fit("ridge", new, old)
    assert np.allclose(fitted.matrix, model.coef_.T + np.eye(WIDTH), atol=1e-8)
    assert np.allclose(fitted.shift, model.intercept_, atol=1e-8)


@pytest.mark.parametrize("kind", query_drift.KINDS)
def test_an_index_that_is_moved_scores_as_queries_that_are(kind: str) -> None:
    new, old, documents = (unit(N, seed) for seed in range(3))
    compensation = query_drift.fit(kind, new, old)
    moved = new @ (np.eye(WIDTH) if compensation.matrix is None else compensation.matrix) + compensation.shift
    vectors, bias = compensation.documents(documents)
    assert np.abs(new @ vectors.T + bias - moved @ documents.T).max() < 1e-6
    if kind == "mean":
        assert np.array_equal(vectors, documents)
    assert (ranking(compensation.queries(new), documents)[:, 0] == (new @ vectors.T + bias).argmax(axis=1)).mean() > 0.999


def test_they_are_saved_by_version_width_and_depth(tmp_path: Path) -> None:
    new, old = unit(N, 0), unit(N, 1)
    made = {("2024/v1", 12, None): query_drift.fit("mean", new, old), ("v2", 12, 3): query_drift.fit("ridge", new, old)}
    query_drift.save(str(tmp_path), made)
    found = query_drift.load(str(tmp_path))
    assert found.keys() == made.keys()
    for key, compensation in made.items():
        assert np.array_equal(found[key].queries(new), compensation.queries(new))
    assert query_drift.load(str(tmp_path / "elsewhere")) == {}


def test_vectors_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs vectors of the same queries and width, got \(400, 12\) and \(400, 6\)"):
        query_drift.fit("mean", unit(N, 0), unit(N, 0)[:, :6])


def test_the_matrix_has_a_row_for_each_index_and_each_later_version() -> None:
    base, shift = unit(N, 0), np.linspace(-0.6, 0.6, WIDTH)
    texts = [f"text {i}" for i in range(N)]
    pairs = Pairs(
        ids=texts, anchors=[f"q {text}" for text in texts], positives=texts, negatives=[[]] * N, langs=["a", "b"] * 200
    )
    queries = {f"v{i}": base + i * shift for i in range(3)}
    rows = drift.matrix(
        queries, {name: base for name in queries}, {name: v[:100] for name, v in queries.items()}, pairs, "mean"
    )
    assert [(row["index"], row["queries"]) for row in rows] == [
        ("v0", "v0"), ("v0", "v1"), ("v0", "v2"), ("v1", "v1"), ("v1", "v2"), ("v2", "v2")
    ]  # fmt: skip
    first = rows[2]
    assert rows[0]["compensated"] is None
    assert rows[0]["stale"]["accuracy_at_1"] == 1.0
    assert first["stale"]["accuracy_at_1"] < 0.9
    assert first["compensated"]["accuracy_at_1"] == 1.0
    assert set(first["stale"]["by_language"]) == {"a", "b"}
    assert drift.recovered(first, rows[0]) == pytest.approx(1.0)
    assert drift.recovered(rows[0], rows[0]) is None
