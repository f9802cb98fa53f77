"""Sparse and soft mixtures against deepfocus, entmax and langsfer, on the same vectors."""

from dataclasses import replace
from itertools import pairwise

import entmax
import numpy as np
import pytest
import torch
from deepfocus.focus import focus_additional_token_initialization
from deepfocus.vocab_helper import NewToken, OverlappingToken, TokenClass
from langsfer.similarity import CosineSimilarity
from langsfer.weights import IdentityWeights, SoftmaxWeights, SparsemaxWeights, TopKWeights

from tests.oracle.conftest import apart, dense
from trainer.executor import LocalExecutor
from trainer.transfer.methods import clp, focus
from trainer.transfer.problem import Problem
from trainer.transfer.search import neighbours
from trainer.word_vectors import VECTORS, fasttext
from trainer.word_vectors.fasttext import FastTextConfig
from trainer.word_vectors.texts import Texts

NEW, SHARED, WIDTH = 400, 700, 40


@pytest.fixture(scope="module", params=["random", "clustered"])
def vectors(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """New and shared vectors; clustered ones, as trained ones are, have far larger supports."""
    generator = torch.Generator().manual_seed(0)
    new, shared = torch.randn(NEW, WIDTH, generator=generator), torch.randn(SHARED, WIDTH, generator=generator)
    return (new, shared) if request.param == "random" else (new + 4.0, shared + 4.0)


def mix(columns: np.ndarray, weights: np.ndarray, old: torch.Tensor) -> np.ndarray:
    return dense(columns, weights, len(old)) @ old.double().numpy()


def test_focus_rows_are_those_of_deepfocus(vectors) -> None:
    new, shared = vectors
    old = torch.randn(SHARED, 64, generator=torch.Generator().manual_seed(1))
    token = [TokenClass(str(number), number, "", "", "", "", False) for number in range(max(NEW, SHARED))]
    theirs = focus_additional_token_initialization(
        {str(n): OverlappingToken([], token[n], old[n], shared[n].numpy()) for n in range(SHARED)},
        {str(n): NewToken(token[n], new[n].numpy()) for n in range(NEW)},
        torch.zeros(NEW, 64),
    )
    ours = neighbours.top_sparsemax(neighbours.unit_rows(new), neighbours.unit_rows(shared))
    assert apart(mix(*ours, old), theirs) < 1e-5


def test_the_method_gives_the_rows_of_deepfocus_for_real_tokens(vocabularies, texts: Texts, monkeypatch) -> None:
    """From the tokenised text on: the same fastText vectors, the same shared tokens."""
    cache = {}
    real = fasttext.train
    monkeypatch.setitem(
        VECTORS, "fasttext", replace(VECTORS["fasttext"], train=lambda *a: cache.setdefault("vectors", real(*a)))
    )
    problem = Problem(*vocabularies["unigram"], texts, seed=0)
    small = FastTextConfig(dim=32, epochs=3, min_count=3, buckets=5000)
    rows = focus.place(problem, focus.FocusConfig(fasttext=small))
    names = [focus.fasttext_word(token, number) for number, token in enumerate(problem.tokens)]
    ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    shared = focus.ids_with_vectors(np.flatnonzero((problem.shared >= 0) & ordinary), names, cache["vectors"])
    old = torch.randn(problem.source_rows, 64, generator=torch.Generator().manual_seed(1))
    token = [TokenClass(name, number, "", "", "", "", False) for number, name in enumerate(names)]
    vector = dict(zip(names, cache["vectors"].vectors(names).numpy(), strict=True))
    theirs = focus_additional_token_initialization(
        {names[n]: OverlappingToken([], token[n], old[problem.shared[n]], vector[names[n]]) for n in shared},
        {names[n]: NewToken(token[n], vector[names[n]]) for n in rows.ids},
        torch.zeros(len(names), 64),
    )[rows.ids]
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    ours = np.stack(
        [rows.weights[a:b].astype(np.float64) @ old[rows.indices[a:b]].double().numpy() for a, b in pairwise(bounds)]
    )
    assert apart(ours, theirs) < 1e-5


def test_sparsemax_is_entmax_and_langsfer(vectors) -> None:
    new, shared = vectors
    cosines = CosineSimilarity().apply(new.double().numpy(), shared.double().numpy())
    ours = dense(*neighbours.top_sparsemax(neighbours.unit_rows(new), neighbours.unit_rows(shared)), SHARED)
    assert apart(ours, entmax.sparsemax(torch.from_numpy(cosines), dim=1)) < 1e-6
    assert apart(ours, SparsemaxWeights().apply(cosines)) < 1e-6
    ordered = -np.sort(-cosines, axis=1)
    assert apart(neighbours.sparsemax_sorted(ordered)[0], entmax.sparsemax(torch.from_numpy(ordered), dim=1)) < 1e-12


def test_softmax_of_the_nearest_is_langsfer_s(vectors) -> None:
    new, shared = vectors
    cosines = CosineSimilarity().apply(new.double().numpy(), shared.double().numpy())
    theirs = TopKWeights(10).compose(SoftmaxWeights(0.1)).apply(cosines)
    ours = dense(*neighbours.top_softmax(neighbours.unit_rows(new), neighbours.unit_rows(shared), 10, 0.1), SHARED)
    assert apart(ours, theirs) < 1e-6


def test_clp_is_langsfer_s_where_no_cosines_cancel() -> None:
    """langsfer divides the cosines by their sum, as we do while that sum is a tenth of what it could be."""
    generator = torch.Generator().manual_seed(0)
    new, shared = (torch.randn(size, WIDTH, generator=generator) + 1.0 for size in (NEW, SHARED))
    cosines = IdentityWeights().apply(CosineSimilarity().apply(new.double().numpy(), shared.double().numpy()))
    ours = dense(*clp.cosine_mixtures(new, shared, SHARED, LocalExecutor()), SHARED)
    assert apart(ours, cosines / cosines.sum(axis=1, keepdims=True)) < 1e-6
