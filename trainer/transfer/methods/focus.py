"""FOCUS: a new token starts as a sparse mixture of the shared tokens.

Dobler and de Melo, EMNLP 2023 (arXiv:2305.14481), section 3. With new token t, shared tokens s, and fastText vectors a
trained on text in the new tokenizer's tokens:

    w_t = sparsemax_s( cos(a_t, a_s) )         E_new[t] = sum_s w_ts E_old[s]

The text is only the new language's corpus, as in the paper: no text pairs, no source-language text.

Differences from the paper: tokens are written in characters for every tokenizer family, so fastText's subwords are
characters too. The sparsemax is computed exactly from the highest scores alone (see `neighbours.top_sparsemax`).
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
    """The source of the token vectors; the paper trains them for three epochs on tokens that occur at least ten times."""

    kind: VectorKind = "fasttext"
    """The family of vectors to train on the text if no vectors are given."""
    vectors: str | None = None
    """A `.bin` or `.vec` file of word vectors of the new language, looked up by a token's text; no vectors are trained then."""


def place(problem: Problem, config: FocusConfig) -> Placement:
    """Places every new token that has a vector, as a sparse mixture of shared tokens.

    Raises:
        DataError: no shared token has a vector.
    """
    names, vectors = _token_vectors(problem, config)
    is_ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    shared = ids_with_vectors(np.flatnonzero((problem.shared >= 0) & is_ordinary), names, vectors)
    new = ids_with_vectors(problem.new, names, vectors)
    if not len(shared):
        raise DataError(
            "no shared token occurs often enough in the text.",
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
    """The `ids` of tokens that occur often enough to have their own vector."""
    return ids[[names[number] in vectors for number in ids]]


def _token_vectors(problem: Problem, config: FocusConfig) -> tuple[list[str], Vectors]:
    """The name of each target token, and the vectors by name, read from a file or trained; rare names have none."""
    if config.vectors is not None:
        file_vectors = files.read(config.vectors)
        return [word_space.word_of(token, file_vectors) for token in problem.tokens], file_vectors
    names = [fasttext_word(token, number) for number, token in enumerate(problem.tokens)]
    return names, train(_token_lines(problem, names), config, "tokenised text", problem.executor)


def fasttext_word(token: Token | None, number: int) -> str:
    """The token as a fastText word: a mark if it starts a word, then its characters without blanks."""
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
