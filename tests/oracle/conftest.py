"""Fixtures of the tests against other packages: a pair of vocabularies of each family, and the new matrix of a method.

Only `make oracle` installs the peers. Elsewhere these tests are not collected; in `make oracle`, a missing peer is an error.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from data_pipeline.tokenizers import train
from tests.conftest import FAMILIES
from trainer.transfer import apply
from trainer.transfer.problem import Placement, Problem, assemble
from trainer.word_vectors.texts import Texts

collect_ignore_glob = [] if find_spec("wechsel") else ["test_*.py"]
BLANKS = ["if x:\n\n\treturn\n", "    indented\n        twice\t\tand tabs\r\n", "世界 № ½ ﬁ"] * 20
"""Blanks of all kinds and characters with compatibility forms, on which comparisons of tokens differ."""

Pair = tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def vocabularies(english: list[str], greek: list[str]) -> dict[str, Pair]:
    """An English vocabulary of each family and a Greek and English one of the same family."""
    vocabulary_pairs = {}
    for name, family in FAMILIES.items():
        source = family([*english, *BLANKS])
        vocabulary_pairs[name] = (
            source,
            train.train(source, [*greek, *english, *BLANKS], train.TokenizerConfig(vocab_size=1500)),
        )
    return vocabulary_pairs


@pytest.fixture(scope="session")
def texts(english: list[str], greek: list[str], pairs: list[dict]) -> Texts:
    return Texts(corpus=lambda: iter(greek), anchors=english, positives=[row["positive"] for row in pairs])


def old_rows(problem: Problem, width: int = 24) -> torch.Tensor:
    return torch.randn(problem.source_rows, width, generator=torch.Generator().manual_seed(0))


def new_matrix(problem: Problem, rows: Placement, old: torch.Tensor) -> np.ndarray:
    """The new matrix as a user gets it."""
    return apply.embeddings(assemble(problem, rows, "oracle"), old).numpy()


def dense(columns: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """Rows of weights over all `width` keys, from the few that are not 0."""
    full = np.zeros((len(columns), width))
    np.add.at(full, (np.arange(len(columns))[:, None], columns), weights)
    return full


def apart(ours: object, theirs: object) -> float:
    """The largest difference between two arrays; also printed, for `pytest -rP`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert ours.size
    largest = float(np.abs(ours - theirs).max())
    print(f"{ours.shape} numbers, largest difference {largest:.1e}")
    return largest
