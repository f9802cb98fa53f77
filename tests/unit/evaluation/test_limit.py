"""LIMIT: the data set has the pairs that its queries ask for and no others; exact vectors retrieve all of them."""

import hashlib
import json
import re
from dataclasses import asdict
from itertools import combinations
from math import comb

import numpy as np
import pytest

from trainer.evaluation import capacity
from trainer.evaluation.limit import THINGS, limit


def things(text: str) -> list[str]:
    return re.split(", | and ", text[:-1].partition(" likes ")[2])


@pytest.mark.parametrize("documents", [46, 2_000])
def test_exactly_the_judged_documents_list_what_a_query_asks_for(documents: int) -> None:
    data = limit(documents)
    liked = {name: set(things(text)) for name, text in data.documents.items()}
    assert (len(data.documents), len(data.queries)) == (documents, 1_000)
    for query, text in data.queries.items():
        thing = re.fullmatch("Who likes (.+)\\?", text).group(1)
        assert {name for name, own in liked.items() if thing in own} == set(data.judgements[query])
    assert all(len(own) == len(things(data.documents[name])) >= THINGS for name, own in liked.items())


def test_queries_ask_for_the_first_pairs_of_the_fewest_documents() -> None:
    data = limit(100, queries=30)
    people = sorted({name for judged in data.judgements.values() for name in judged})
    assert comb(len(people) - 1, 2) < 30 <= comb(len(people), 2)
    assert [tuple(judged) for judged in data.judgements.values()] == list(combinations(people, 2))[:30]


def test_a_seed_gives_the_same_data_and_a_larger_set_only_adds_documents() -> None:
    data = limit()
    assert limit() == data
    assert data.documents.items() <= limit(200).documents.items()
    assert limit(seed=1).documents != data.documents
    assert len({text.partition(" likes ")[0] for text in limit(2_000).documents.values()}) == 2_000


def test_the_data_stays_the_same_to_the_byte() -> None:
    """On every machine, and with every release of NumPy."""
    text = json.dumps(asdict(limit(200)))
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == "2531f14cbd971149dd113b2df5728099"


@pytest.mark.parametrize("n", [3, 7, 46, 200])
def test_exact_vectors_retrieve_every_pair(n: int) -> None:
    documents, queries, pairs = capacity.circle(n)
    assert documents.shape == (n, 4)
    assert np.linalg.norm(documents, axis=1) == pytest.approx(1.0)
    assert [set(np.argsort(-row)[:2]) for row in queries @ documents.T] == [set(pair) for pair in pairs]
    assert capacity.share_retrieved(documents, queries, pairs) == 1.0


def test_scores_of_exact_vectors_are_the_polynomial() -> None:
    """Up to a constant and the length of the query, -(1 - cos(x - a)) (1 - cos(x - b))."""
    documents, queries, pairs = capacity.circle(9)
    angles = 2 * np.pi * np.arange(9) / 9
    for query, (a, b) in zip(queries, angles[pairs], strict=True):
        expected = -(1 - np.cos(angles - a)) * (1 - np.cos(angles - b))
        assert np.corrcoef(documents @ query, expected)[0, 1] == pytest.approx(1.0)


def test_each_lower_precision_loses_pairs() -> None:
    documents, queries, pairs = capacity.circle(46)
    shares = [capacity.share_retrieved(store(documents), store(queries), pairs) for store in capacity.PRECISIONS.values()]
    assert shares[:2] == [1.0, 1.0]
    assert sorted(shares, reverse=True) == shares
    assert shares[1] > shares[2] > shares[3] > shares[4]


def test_a_tie_is_not_retrieved() -> None:
    assert capacity.share_retrieved(np.ones((3, 1)), np.ones((1, 1)), np.array([[0, 1]])) == 0.0


def test_free_embeddings_of_three_dimensions_hold_four_documents_and_not_six() -> None:
    found, shares = capacity.critical_n(3, 4)
    assert found == 4
    assert shares[4] == 1.0 > shares[6]
