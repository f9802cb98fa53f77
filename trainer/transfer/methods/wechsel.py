"""WECHSEL: a new token starts as a mixture of its nearest old tokens in an aligned space of static word vectors.

Minixhofer, Paischer and Rekabsaz, NAACL 2022 (arXiv:2112.06598), section 3. With static vectors A_s, A_t of old and new
tokens, mapped into one space by orthogonal Procrustes on a dictionary, and the k nearest old tokens J_t:

    w_ts = softmax_{s in J_t}( cos(a_t, a_s) / tau )         E_new[t] = sum_s w_ts E_old[s]

A token's vector is fastText's subword vector of its text (the paper's default). Ours differs: tokens that both
vocabularies have are copied unless `transfer.copy_shared` is off; a token that is not text is left to the random fallback
instead of being given the vector of a replacement character; a dictionary can be mined from the pairs.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.tokenizers.canonical import Token, canonical_tokens
from trainer.static import dictionary, fasttext
from trainer.static.fasttext import FastTextConfig, FastTextVectors
from trainer.transfer.kernels import procrustes, top_softmax, unit
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Problem, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class WechselConfig:
    """Settings of WECHSEL and of the vectors that it needs."""

    neighbours: int = 10
    """k"""
    temperature: float = 0.1
    """tau"""
    dictionary: str | None = None
    """A TSV of source word and new-language word; mined from the pairs when not given."""
    fasttext: FastTextConfig = field(default_factory=lambda: FastTextConfig(min_count=2, epochs=10))

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0:
            raise ConfigError(
                f"wechsel needs neighbours >= 1 and temperature > 0, got {self.neighbours} and {self.temperature}."
            )


def rows(problem: Problem, config: WechselConfig) -> Rows:
    """Neighbour mixtures for every new token that has a vector.

    Raises:
        DataError: no pair of the dictionary has both words in the vectors.
    """
    texts = problem.texts
    source = _word_vectors(texts.anchors, config.fasttext, "anchors")
    target = _word_vectors([*texts.corpus(), *texts.positives], config.fasttext, "text")
    if config.dictionary is not None:
        pairs = dictionary.read(config.dictionary)
    else:
        pairs = dictionary.mine(texts.anchors, texts.positives)
    rotation = align(pairs, source, target, config.dictionary or "mined from pairs")
    old_ids, old = token_vectors(canonical_tokens(problem.source), np.arange(problem.source_rows), source)
    new_ids, new = token_vectors(problem.tokens, problem.new, target)
    columns, weights = top_softmax(unit(new), unit(old @ rotation), config.neighbours, config.temperature, problem.spread)
    return Rows.from_dense(new_ids, old_ids[columns], weights, Provenance.NEIGHBOURS)


def align(pairs: list[tuple[str, str]], source: FastTextVectors, target: FastTextVectors, name: str) -> torch.Tensor:
    """The rotation of source vectors into the target space, float32 [A, A], from the dictionary's known pairs.

    Each pair counts in its three spellings (as is, lower case, title case) on either side, as in the reference code.
    """
    spelt = [
        (s, t)
        for left, right in pairs
        for s in dict.fromkeys((left, left.lower(), left.title()))
        for t in dict.fromkeys((right, right.lower(), right.title()))
        if s in source and t in target
    ]
    if not spelt:
        raise DataError(
            f"none of its {len(pairs):,} pairs has both words in the texts.",
            f"dictionary={name}",
            "Give a dictionary from the source language to the new one, one pair a line, or more text.",
        )
    left = source.vectors(s for s, _ in spelt)
    right = target.vectors(t for _, t in spelt)
    return procrustes(left, right).float()


def token_vectors(
    tokens: list[Token | None], ids: NDArray[np.int64], vectors: FastTextVectors
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Those of `ids` that are ordinary tokens of valid text and have a vector, and their vectors [n, A]."""
    named = [(int(number), _text(tokens[number])) for number in ids]
    kept = [(number, text) for number, text in named if text]
    found = vectors.vectors(text for _, text in kept)
    usable = found.norm(dim=1) > 0
    return np.array([number for number, _ in kept], np.int64)[usable.numpy()], found[usable]


def _text(token: Token | None) -> str:
    if token is None or token.role is not None:
        return ""
    try:
        return token.payload.decode().strip().lower()
    except UnicodeDecodeError:
        return ""


def _word_vectors(texts: list[str], config: FastTextConfig, what: str) -> FastTextVectors:
    return fasttext.train((" ".join(dictionary.words(text)) for text in texts), config, what)
