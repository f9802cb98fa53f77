"""Batch-OMP against scikit-learn and mergekit, factors against NumPy and scikit-learn, the mean against transformers."""

import numpy as np
import pytest
import torch
from mergekit.tokenizer.normalization import TokenMarker
from mergekit.tokensurgeon.omp import batch_omp
from mergekit.tokensurgeon.subword import SubwordMethod, subword_approximate
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import orthogonal_mp

from tests.conftest import tiny_decoder
from tests.oracle.conftest import apart, dense, new_matrix, old_rows
from trainer.transfer.factorise import factorise
from trainer.transfer.methods import fvt, mean
from trainer.transfer.problem import Problem
from trainer.transfer.search.batch_omp import PursuitConfig, combinations
from trainer.transfer.search.neighbours import unit_rows

K = 8


@pytest.fixture(scope="module")
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors, and atoms of length 1: there the three agree on which atom is the best."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 48, generator=generator), unit_rows(torch.randn(300, 48, generator=generator))


def ours(vectors: torch.Tensor, atoms: torch.Tensor, **settings: float) -> tuple[np.ndarray, np.ndarray]:
    return combinations(vectors, atoms, PursuitConfig(k=K, ridge=0.0, **settings))


def test_pursuit_is_scikit_learn_s(sides) -> None:
    vectors, atoms = sides
    theirs = orthogonal_mp(atoms.double().numpy().T, vectors.double().numpy().T, n_nonzero_coefs=K).T
    result = dense(*ours(vectors, atoms), len(atoms))
    assert ((result != 0) == (theirs != 0)).all()
    assert apart(result, theirs) < 1e-5


def test_pursuit_is_mergekit_s(sides) -> None:
    vectors, atoms = sides
    index, coefficients = batch_omp(vectors.double(), atoms.double(), K)
    result = dense(*ours(vectors, atoms, normalise_atoms=False), len(atoms))
    assert apart(result, dense(index.numpy(), coefficients.numpy(), len(atoms))) < 1e-5


def test_by_cosine_the_residual_is_as_small_as_by_product(sides) -> None:
    """Atoms of any length: mergekit takes the highest product, which prefers long atoms, and is left with more."""
    vectors, atoms = sides
    scale = torch.exp(torch.randn(len(atoms), 1, generator=torch.Generator().manual_seed(2)))
    long = atoms * scale
    index, coefficients = batch_omp(vectors.double(), long.double(), K)
    theirs = vectors.double().numpy() - dense(index.numpy(), coefficients.numpy(), len(long)) @ long.double().numpy()
    residual = vectors.double().numpy() - dense(*ours(vectors, long), len(long)) @ long.double().numpy()
    assert np.linalg.norm(residual) < 0.95 * np.linalg.norm(theirs)


@pytest.mark.parametrize("split", ["balanced", "paper"])
def test_factors_are_the_truncated_svd(split: str) -> None:
    rows = torch.randn(900, 120, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, 120)
    coordinates, primitives = factorise(rows.double(), 30, split)
    product = (coordinates @ primitives).numpy()
    u, s, vt = np.linalg.svd(rows.double().numpy(), full_matrices=False)
    assert apart(product, (u[:, :30] * s[:30]) @ vt[:30]) < 1e-9
    svd = TruncatedSVD(30, algorithm="arpack", random_state=0)
    assert apart(product, svd.inverse_transform(svd.fit_transform(rows.double().numpy()))) < 1e-8


def test_the_mean_is_what_resizing_in_transformers_appends(vocabularies, texts) -> None:
    """`mean_resizing` draws from N(mean, 1e-9 covariance)."""
    source, _ = vocabularies["byte_level"]
    model = tiny_decoder(source)
    old = model.get_input_embeddings().weight.detach().clone()
    torch.manual_seed(0)
    model.resize_token_embeddings(len(source) + 20, mean_resizing=True)
    theirs = model.get_input_embeddings().weight[len(source) :].detach()
    problem = Problem(*vocabularies["byte_level"], texts, seed=0)
    matrix = new_matrix(problem, mean.place(problem, mean.MeanConfig()), old[: problem.source_rows])
    assert apart(matrix[problem.new[:20]], theirs) < 1e-3
    assert apart(matrix[problem.new[:20]].mean(axis=0), theirs.mean(dim=0)) < 1e-4


def test_pieces_are_averaged_as_by_mergekit(vocabularies, texts) -> None:
    """Byte-level words, which the peer splits as we do."""
    problem = Problem(*vocabularies["byte_level"], texts, seed=0)
    old = old_rows(problem)
    placement = fvt.place(problem, fvt.FvtConfig())
    starts = [
        number for number in placement.ids.tolist() if problem.tokens[number].is_word_start and problem.tokens[number].text()
    ]
    tokens = [(TokenMarker.WORD_START, problem.tokens[number].text()) for number in starts]
    theirs = subword_approximate(old, tokens, False, problem.source, SubwordMethod.MEAN)
    assert len(starts) > 100
    assert apart(new_matrix(problem, placement, old)[starts], theirs) < 1e-5
