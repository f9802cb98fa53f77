"""IsoScore against the authors' package."""

import numpy as np
import pytest
from IsoScore.IsoScore import IsoScore

from trainer.evaluation.isotropy import isoscore


@pytest.mark.parametrize(("n", "d"), [(500, 8), (100, 64), (30, 64)])
def test_isoscore_is_that_of_its_authors(n: int, d: int) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, d)) / np.arange(1, d + 1)
    assert isoscore(vectors) == pytest.approx(float(IsoScore(vectors)), abs=1e-6)
