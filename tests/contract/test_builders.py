"""Every pair builder of the table keeps the contract in `pairs/builders`."""

import pytest

from data_pipeline.errors import DataError
from data_pipeline.pairs.builders import BUILDERS, Builder

TEXT = [
    ("el", f"Η πρόταση με αριθμό {number} έχει πολλές λέξεις.\nΚαι η δεύτερη γραμμή {number} το ίδιο.") for number in range(40)
]


@pytest.fixture(params=sorted(BUILDERS))
def builder(request: pytest.FixtureRequest) -> Builder:
    return BUILDERS[request.param].config()


def test_pairs_are_parallel_lists_with_unique_ids(builder: Builder) -> None:
    pairs = builder(TEXT, 1000, seed=0)
    assert len(pairs) > 0
    assert len(pairs.ids) == len(set(pairs.ids)) == len(pairs.anchors) == len(pairs.positives) == len(pairs.negatives)
    assert set(pairs.langs) == {"el"}
    assert all(pairs.anchors)
    assert all(pairs.positives)


def test_no_more_pairs_than_asked_for(builder: Builder) -> None:
    assert len(builder(TEXT, 10, seed=0)) == 10


def test_the_same_seed_gives_the_same_pairs_in_any_order_of_the_text(builder: Builder) -> None:
    assert builder(TEXT, 10, seed=1) == builder(TEXT[::-1], 10, seed=1)
    assert builder(TEXT, 10, seed=1) != builder(TEXT, 10, seed=2)


def test_text_without_sentences_is_refused(builder: Builder) -> None:
    with pytest.raises(DataError):
        builder([("el", "τίτλος")], 10, seed=0)
