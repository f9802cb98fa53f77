"""Whole methods of other packages, from a model's files to its new matrix, and mergekit's other mixtures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from deepfocus import FOCUS
from langsfer.embeddings import TransformersEmbeddings
from langsfer.high_level import clp_transfer
from mergekit.tokensurgeon import DistanceMetric, WeightingScheme, batch_omp, common_interp_approximate

from tests.conftest import tiny_model
from tests.oracle.conftest import Pair, apart, dense, new_matrix, old_rows
from trainer.executor import LocalExecutor
from trainer.transfer.methods import clp, focus
from trainer.transfer.problem import Problem
from trainer.transfer.search.batch_omp import PursuitConfig, combinations
from trainer.word_vectors import VECTORS, fasttext
from trainer.word_vectors.fasttext import FastTextConfig, FastTextVectors
from trainer.word_vectors.texts import Texts


def with_random_vectors(model: fasttext.FastTextVectors, path: str) -> FastTextVectors:
    """Replaces the vectors, which point the same way after a small text, by random ones; by zeros for `</s>`.

    fastText puts `</s>` at each line's end. deepfocus takes that for the tokenizer's own `</s>` and mixes it in.
    """
    inner = model.model
    rows = np.random.default_rng(0).normal(size=inner.get_input_matrix().shape).astype(np.float32)
    rows[inner.get_word_id("</s>")] = 0.0
    inner.set_matrices(rows, inner.get_output_matrix())
    inner.save_model(path)
    return FastTextVectors(inner)


def test_focus_as_a_whole_gives_the_matrix_of_deepfocus(
    vocabularies: dict[str, Pair], texts: Texts, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentencePiece, where our names of tokens are theirs; tokens drawn at random differ by the generator.

    A token of blanks has another name and may be another copy (see `test_overlap.py`), so this goes without them.
    """
    source, target = vocabularies["unigram"]
    problem = Problem(source, target, texts, seed=0)
    real, path = fasttext.train, str(tmp_path / "tokens.bin")
    monkeypatch.setitem(VECTORS, "fasttext", replace(VECTORS["fasttext"], train=lambda *a: with_random_vectors(real(*a), path)))
    old = old_rows(problem)
    rows = focus.place(problem, focus.FocusConfig(fasttext=FastTextConfig(dim=32, epochs=1, min_count=3, buckets=5000)))
    theirs = FOCUS(target, source, old, fasttext_model_path=path, verbosity="silent").numpy()
    matrix = new_matrix(problem, rows, old)
    copies = np.array([number for number in np.flatnonzero(problem.shared >= 0) if text_of(problem, number).strip()])
    assert len(copies) > 200
    assert apart(matrix[copies], theirs[copies]) == 0
    assert len(rows.ids) > 300
    assert apart(matrix[rows.ids], theirs[rows.ids]) < 1e-5


def text_of(problem: Problem, number: int) -> str:
    token = problem.tokens[number]
    assert token is not None
    return "special" if token.role is not None else token.text() or ""


@pytest.mark.parametrize("family", ["wordpiece", "byte_level", "unigram"])
def test_clp_as_a_whole_gives_the_matrix_of_langsfer(
    family: str, vocabularies: dict[str, Pair], texts: Texts, tmp_path
) -> None:
    """Within a family, where equal tokens are equal strings. langsfer also compares with special tokens, which mean something
    else in each model: their rows are zeroed in the donor, so that they weigh nothing."""
    source, target = vocabularies[family]
    problem = Problem(source, target, texts, seed=0)
    donor = tiny_model(target)
    table = donor.get_input_embeddings().weight.detach()
    table += 0.5  # cosines that cancel are our own matter, see `clp.py`
    table[[number for number, token in enumerate(problem.tokens) if token.role is not None]] = 0.0
    donor.save_pretrained(tmp_path)
    target.save_pretrained(tmp_path)
    old = old_rows(problem)
    rows = clp.place(problem, clp.ClpConfig(donor=str(tmp_path)))
    auxiliary = TransformersEmbeddings.from_model_name_or_path(str(tmp_path))
    theirs = clp_transfer(source, old[: len(source)].numpy(), target, auxiliary).initialize(seed=0)
    assert len(rows.ids) > 500
    assert apart(new_matrix(problem, rows, old), theirs) < 1e-5


@pytest.mark.parametrize("width", [5, 200])
def test_clp_is_mergekit_s_interpolation_by_cosine(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    new, shared = (torch.randn(size, 40, generator=generator) + 1.0 for size in (60, 200))
    scheme = WeightingScheme.DISTANCE_PROPORTIONAL
    index, weights = common_interp_approximate(new.double(), shared.double(), width, DistanceMetric.COSINE, scheme)
    theirs = dense(index.numpy(), weights.numpy(), len(shared))
    assert apart(dense(*clp.cosine_mixtures(new, shared, width, LocalExecutor()), len(shared)), theirs) < 1e-6


def test_pursuit_by_product_is_mergekit_s_for_atoms_of_any_length() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, atoms = torch.randn(60, 48, generator=generator), torch.randn(300, 48, generator=generator)
    atoms *= torch.exp(torch.randn(300, 1, generator=generator))
    index, weights = batch_omp(vectors.double(), atoms.double(), 16)
    ours = combinations(vectors, atoms, PursuitConfig(k=16, ridge=0.0, normalise_atoms=False))
    rebuilt = [dense(*parts, 300) @ atoms.double().numpy() for parts in (ours, (index.numpy(), weights.numpy()))]
    assert apart(*rebuilt) < 1e-5
