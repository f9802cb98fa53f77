"""IsoScore against the steps of its paper, the mean cosine against brute force."""

import numpy as np
import pytest

from trainer.evaluation.isotropy import isoscore, spread


def published(vectors: np.ndarray) -> float:
    """Algorithm 1 of the paper: principal components, normalised variances, their distance from (1, ..., 1), two scalings."""
    d = vectors.shape[1]
    variances = np.linalg.eigvalsh(np.cov(vectors, rowvar=False))
    normalised = np.sqrt(d) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (d - np.sqrt(d)))
    used = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    return (d * used - 1) / (d - 1)


@pytest.mark.parametrize(("n", "d"), [(500, 8), (30, 64), (2, 5)])
def test_isoscore_is_that_of_the_paper(n: int, d: int) -> None:
    draw = np.random.default_rng(0)
    for power in (0.0, 1.0, 3.0):
        vectors = draw.normal(size=(n, d)) * np.arange(1, d + 1) ** -power + 2
        assert isoscore(vectors) == pytest.approx(published(vectors), abs=1e-9)


def test_isoscore_lies_between_one_direction_and_all() -> None:
    assert isoscore(np.concatenate([np.eye(7), -np.eye(7)])) == pytest.approx(1.0)
    assert isoscore(np.outer(np.arange(9.0), np.ones(7))) == pytest.approx(0.0)
    assert isoscore(np.ones((4, 7))) == 0.0


def test_fewer_texts_than_dimensions_do_not_fill_them() -> None:
    assert isoscore(np.eye(10, 64)) == pytest.approx((10 - 2) / (64 - 1))


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    assert spread(vectors).mean_cosine == pytest.approx(cosines[np.triu_indices(40, 1)].mean())
    assert spread(vectors[:1]).isoscore is None
