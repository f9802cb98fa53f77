"""FOCUS: a new token starts as a sparse mixture of the tokens that both vocabularies share.

Dobler and de Melo, EMNLP 2023 (arXiv:2305.14481), section 3. With new token t, shared tokens s, and fastText vectors a
trained on text in the new tokenizer's tokens:

    w_t = sparsemax_s( cos(a_t, a_s) )         E_new[t] = sum_s w_ts E_old[s]

The text is the new language's corpus alone, as in the paper: no pairs, and nothing of the source language.

Differences from the paper: tokens are written in characters whatever the tokenizer's family, so that fastText's subwords are
characters too; the sparsemax is computed exactly from the highest scores alone (see `kernels.top_sparsemax`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.canonical import Token
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.neighbours import top_sparsemax, unit_rows
from trainer.word_vectors import VectorKind, files, sections, train, word_space
from trainer.word_vectors.vectors import Vectors

_Sections: Any = sections(fasttext={"min_count": 10, "epochs": 3}, ppmi={"min_count": 10})


@dataclass(frozen=True, kw_only=True)
class FocusConfig(_Sections):
    """Where token vectors come from; the paper trains them for three epochs on tokens that occur at least ten times."""

    kind: VectorKind = "fasttext"
    """What is trained on the text where no vectors are given."""
    vectors: str | None = None
    """A `.bin` or `.vec` file of the new language's words, for tokens by their text; nothing is trained then."""


def place(problem: Problem, config: FocusConfig) -> Placement:
    """Sparse mixtures of shared tokens for every new token that has a vector.

    Raises:
        DataError: no shared token has a vector.
    """
    names, vectors = _token_vectors(problem, config)
    ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    shared = ids_with_vectors(np.flatnonzero((problem.shared >= 0) & ordinary), names, vectors)
    new = ids_with_vectors(problem.new, names, vectors)
    if not len(shared):
        raise DataError(
            "no token that both vocabularies share occurs often enough in the text.",
            "transfer",
            "Give more text, or take a method that needs no shared tokens (aligned, fvt).",
        )
    columns, weights = top_sparsemax(
        unit_rows(vectors.vectors(names[number] for number in new)),
        unit_rows(vectors.vectors(names[number] for number in shared)),
        problem.executor,
    )
    return Placement.from_dense(new, problem.shared[shared][columns], weights, Provenance.NEIGHBOURS)


def ids_with_vectors(ids: NDArray[np.int64], names: list[str], vectors: Vectors) -> NDArray[np.int64]:
    """Those of `ids` that occurred often enough to have a vector of their own."""
    return ids[[names[number] in vectors for number in ids]]


def _token_vectors(problem: Problem, config: FocusConfig) -> tuple[list[str], Vectors]:
    """What each token is called, and the vectors in which that name is looked up."""
    if config.vectors is not None:
        given = files.read(config.vectors)
        return [word_space.word_of(token, given) for token in problem.tokens], given
    names = [_name(token, number) for number, token in enumerate(problem.tokens)]
    return names, train(_token_lines(problem, names), config, "tokenised text", problem.executor)


def _name(token: Token | None, number: int) -> str:
    """The token as a fastText word: its characters, a mark at the word's start, no blanks."""
    if token is None or token.role is not None:
        return f"<{number}>"
    try:
        text = token.payload.decode().replace(" ", "\u2423")
    except UnicodeDecodeError:
        text = f"<{token.payload.hex()}>"
    return ("\u2581" if token.is_word_start else "") + "".join(text.split()) or f"<{number}>"


def _token_lines(problem: Problem, names: list[str]) -> list[str]:
    texts = list(problem.texts.corpus())
    encoded = problem.target.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [" ".join(names[number] for number in text.ids) for text in encoded]
