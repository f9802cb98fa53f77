"""Every family of word vectors of the table keeps the contract in `word_vectors`."""

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError
from trainer.executor import LocalExecutor
from trainer.word_vectors import VECTORS, sections, train

SMALL = {"fasttext": {"dim": 16, "epochs": 1, "min_count": 3, "buckets": 2000}, "ppmi": {"dim": 16, "min_count": 3}}
"""Settings for a small text; a family without a row here has its defaults."""


@pytest.fixture(params=sorted(VECTORS))
def config(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    return type("Config", (sections(**SMALL),), {"kind": request.param})()


def test_a_frequent_word_has_a_finite_vector(config, greek: list[str]) -> None:  # type: ignore[no-untyped-def]
    vectors = train(greek, config, "text", LocalExecutor())
    words = vectors.words[:50]
    found = vectors.vectors(words)
    assert found.shape == (len(words), 16)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found.norm(dim=1) > 0).all()


def test_words_come_with_their_counts(config, greek: list[str]) -> None:  # type: ignore[no-untyped-def]
    vectors = train(greek, config, "text", LocalExecutor())
    spoken = " ".join(greek).split()
    word = vectors.words[0]
    assert vectors.counts[0] == spoken.count(word)
    assert all(word in vectors for word in vectors.words[:20])
    assert len(vectors.counts) == len(vectors.words)


def test_the_same_text_gives_the_same_vectors(config, greek: list[str]) -> None:  # type: ignore[no-untyped-def]
    one, other = (train(greek, config, "text", LocalExecutor()) for _ in range(2))
    assert one.words == other.words
    assert np.array_equal(one.vectors(one.words[:50]).numpy(), other.vectors(other.words[:50]).numpy())


def test_too_little_text_is_named(config) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="the anchors"):
        train(["one two"], config, "anchors", LocalExecutor())
