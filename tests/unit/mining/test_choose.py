"""Which of the nearest texts become negatives."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import ConfigError
from data_pipeline.pairs.shards import text_key
from data_pipeline.pairs.text_pairs import Pairs
from trainer.mining.candidates import arrange
from trainer.mining.choose import draw
from trainer.mining.config import MineConfig

COUNT = 60


@given(
    st.integers(0, 5), st.frozensets(st.integers(0, COUNT - 1), max_size=20), st.integers(0, 6), st.integers(1, 20),
    st.integers(6, 20), st.one_of(st.none(), st.floats(0, 0.5)), st.one_of(st.none(), st.floats(0, 0.5)),
    st.one_of(st.none(), st.floats(-1, 1)),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_negatives_are_those_that_the_rules_leave(seed, excluded, negatives, first, span, margin, relative, max_score) -> None:  # type: ignore[no-untyped-def]
    """By brute force over all texts. No excluded text is ever among them."""
    generator = np.random.default_rng(seed)
    scores = np.sort(generator.uniform(-0.5, 1, COUNT))[::-1]
    index, keys, positive = generator.permutation(COUNT), generator.integers(-(1 << 62), 1 << 62, COUNT), 0.6
    config = MineConfig(negatives=negatives, first=first, last=first + span, margin=margin, relative_margin=relative,
                        max_score=max_score, teacher="x")  # fmt: skip
    made = draw(index, scores, excluded=excluded, positive_score=positive, keys=keys, key=seed, config=config)
    bars = [positive - margin] if margin is not None else []
    bar = min([*bars, positive - positive * relative] if relative is not None else [*bars, math.inf])
    high = math.inf if max_score is None else max_score
    left = [int(text) for text, score in zip(index, scores, strict=True) if text not in excluded and score <= min(bar, high)]
    window = left[first - 1 : first + span]
    assert set(made.places.tolist()) <= set(window)
    assert len(made.places) == min(negatives, len(window))
    assert not set(made.places.tolist()) & excluded
    assert (np.diff(made.scores) <= 0).all()
    assert made.excluded == len(excluded)
    assert made.excluded + made.margin + made.max_score + len(left) == COUNT


def test_what_is_drawn_depends_on_the_query_and_the_texts_not_on_their_places() -> None:
    index, scores, keys = np.arange(COUNT), np.linspace(1, 0, COUNT), np.arange(COUNT) * 7919
    config = MineConfig(negatives=4, first=5, last=50)
    common = {"excluded": frozenset[int](), "positive_score": 1.0, "config": config}
    drawn = draw(index, scores, keys=keys, key=1, **common)  # type: ignore[arg-type]
    other = draw(index, scores, keys=keys, key=2, **common)  # type: ignore[arg-type]
    assert drawn.places.tolist() != other.places.tolist()
    turned = np.arange(COUNT)[::-1]
    again = draw(turned[index], scores, keys=keys[turned], key=1, **common)  # type: ignore[arg-type]
    assert turned[again.places].tolist() == drawn.places.tolist()


def test_all_ranks_of_the_window_are_drawn_equally_often() -> None:
    config = MineConfig(negatives=3, first=6, last=15, relative_margin=None)
    keys = np.arange(COUNT)
    counts = np.zeros(COUNT)
    for key in range(2000):
        scores = np.linspace(1, 0, COUNT)
        made = draw(keys, scores, excluded=frozenset(), positive_score=1, keys=keys, key=key * 77, config=config)
        counts[made.places] += 1
    assert set(np.flatnonzero(counts)) == set(range(5, 15))
    assert np.abs(counts[5:15] - 600).max() < 100  # 5 standard deviations


def test_every_positive_of_an_anchor_is_excluded_for_all_of_its_pairs() -> None:
    pairs = Pairs(
        ids=list("1234"),
        anchors=["One ", "one", "two", "p3"],
        positives=["p1", "P2", "p3", "p4"],
        negatives=[["n"], [], ["p1"], []],
        prompts=["q: ", "", "", ""],
    )
    made = arrange(pairs, None)
    named = [{made.texts[place] for place in places} for places in made.excluded]
    assert made.queries == ["q: One ", "one", "two", "p3"]
    assert named == [{"p1", "P2", "n"}, {"p1", "P2", "n"}, {"p3", "p1"}, {"p4", "p3"}]
    assert [made.texts[place] for place in made.positive_of] == pairs.positives
    assert made.keys.tolist() == [text_key(text) for text in made.texts]
    assert made.count == len(made.texts) == 5


def test_texts_of_pairs_are_no_candidates_beside_a_corpus_and_forbidden_ones_never() -> None:
    pairs = Pairs(ids=["1"], anchors=["a"], positives=["p"], negatives=[["n"]])
    made = arrange(pairs, ["x", "P", "secret", "X"], forbidden=frozenset([text_key("secret")]))
    assert made.texts[: made.count] == ["x", "P"]
    assert made.texts[made.positive_of[0]] == "P"
    assert made.texts[made.count :] == ["n"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": 0}, "mine.first: it must be at least 1, got 0"),
        ({"first": 9, "last": 8}, "mine.last: the last rank, 8, comes before mine.first=9"),
        ({"first": 1, "last": 4}, "ranks 1 to 4 have fewer than 5 texts"),
        ({"margin": -0.1}, "mine.margin: it must be at least 0"),
        ({"negatives": 0}, "nothing to mine and no teacher"),
    ],
)
def test_settings_that_find_nothing_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineConfig(**settings)  # type: ignore[arg-type]
