"""Word vectors of two languages in one space, and the vectors of tokens that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.canonical import Token
from trainer.executor import Executor
from trainer.word_alignment import dictionary
from trainer.word_vectors import VectorKind, files, sections, train
from trainer.word_vectors.procrustes import procrustes
from trainer.word_vectors.texts import Texts
from trainer.word_vectors.vectors import MultilingualVectors, RotatedVectors, Vectors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


_Sections: Any = sections(fasttext={"min_count": 2, "epochs": 10})


@dataclass(frozen=True, kw_only=True)
class SpaceConfig(_Sections):
    """Where word vectors come from and what aligns them."""

    kind: VectorKind = "fasttext"
    """What is trained on the texts for a side that has no vectors given."""
    source_vectors: str | None = None
    """A `.bin` or `.vec` file for the source language, e.g. of fasttext.cc."""
    target_vectors: str | None = None
    """The same for the new language."""
    dictionary: str | None = None
    """A TSV of source word and new-language word; mined from the pairs when not given."""


def align_vectors(texts: Texts, config: SpaceConfig, spread: Executor) -> tuple[Vectors, Vectors]:
    """Vectors of the source language, turned into the space of the new language's, and those.

    Where the text is in several languages, each has vectors of its own and a map of its own, into the space of the source: one
    rotation for all would have to turn them all alike. Vectors or a dictionary that are given are taken for all languages.

    Raises:
        DataError: too little text, vectors of different widths, or no pair of the dictionary has both words.
    """
    if texts.languages and config.target_vectors is None and config.dictionary is None:
        return _of_languages(texts, config, spread)
    source = _side(config.source_vectors, texts.anchors, config, "anchors", spread)
    target = _side(config.target_vectors, [*texts.corpus(), *texts.positives], config, "text", spread)
    if config.dictionary is not None:
        pairs = dictionary.read(config.dictionary)
    else:
        pairs = dictionary.mine(texts.anchors, texts.positives)
    return RotatedVectors(source, rotation(pairs, source, target, config.dictionary or "mined from pairs")), target


def _of_languages(texts: Texts, config: SpaceConfig, spread: Executor) -> tuple[Vectors, Vectors]:
    """A language with too little text for vectors or a dictionary is left out; the error of the last one if all are."""
    source = _side(config.source_vectors, texts.anchors, config, "anchors", spread)
    parts: list[Vectors] = []
    for number, (lang, part) in enumerate(texts.languages.items(), 1):
        try:
            own = _side(None, [*part.corpus(), *part.positives], config, f"text in {lang}", spread)
            pairs = dictionary.mine(part.anchors, part.positives)
            parts.append(RotatedVectors(own, rotation(pairs, source, own, f"mined from pairs in {lang}").T))
        except DataError:
            if number == len(texts.languages) and not parts:
                raise
    return source, MultilingualVectors(parts)


def rotation(pairs: list[tuple[str, str]], source: Vectors, target: Vectors, name: str) -> torch.Tensor:
    """The rotation of source vectors into the target space, float64 [A, A], from the dictionary's known pairs.

    Each pair counts once in each of its distinct spellings (as is, lower case, title case) on either side. WECHSEL's code
    counts a spelling as often as it arises, so that a pair in lower case weighs four times there; vectors of one case give
    the same rotation.
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
            f"none of its {len(pairs):,} pairs has both words in the vectors.",
            f"dictionary={name}",
            "Give a dictionary from the source language to the new one, one pair a line, or more text.",
        )
    return procrustes(source.vectors(s for s, _ in spelt), target.vectors(t for _, t in spelt))


def token_vectors(
    tokenizer: PreTrainedTokenizerFast, tokens: list[Token | None], ids: NDArray[np.int64], vectors: Vectors
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Those of `ids` that have a vector, and their vectors [n, A]: from their characters where the vectors know subwords
    (WECHSEL's default), else from the words that they occur in, weighted by frequency (its other mode)."""
    import torch

    if vectors.has_subwords:
        return token_vectors_by_characters(tokens, ids, vectors)
    known, found = token_vectors_by_words(tokenizer, vectors, vectors.counts, ("{}", " {}"))
    wanted = np.isin(known, ids)
    return known[wanted], found[torch.from_numpy(wanted)]


def token_vectors_by_characters(
    tokens: list[Token | None], ids: NDArray[np.int64], vectors: Vectors
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Those of `ids` that are ordinary tokens of valid text and have a vector, and their vectors [n, A]."""
    named = [(int(number), word_of(tokens[number], vectors)) for number in ids]
    kept = [(number, text) for number, text in named if text]
    found = vectors.vectors(text for _, text in kept)
    usable = found.norm(dim=1) > 0
    return np.array([number for number, _ in kept], np.int64)[usable.numpy()], found[usable]


def token_vectors_by_words(
    tokenizer: PreTrainedTokenizerFast, vectors: Vectors, weights: NDArray[np.float64], spellings: Iterable[str]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Every id that occurs in a word, and the weighted mean [n, A] of the vectors of the words that it occurs in.

    Args:
        weights: [words] of `vectors.words`.
        spellings: how a word is written before it is split; `{}` stands for the word, `{^}` for it in title case. Within
            one spelling a piece counts once.
    """
    import scipy.sparse
    import torch

    rows, columns = [], []
    for spelling in spellings:
        written = [spelling.replace("{^}", word.title()).replace("{}", word) for word in vectors.words]
        for number, encoded in enumerate(tokenizer.backend_tokenizer.encode_batch_fast(written, add_special_tokens=False)):
            pieces = set(encoded.ids)
            rows += sorted(pieces)
            columns += [number] * len(pieces)
    size = max(tokenizer.get_vocab().values()) + 1
    values = np.asarray(weights, np.float64)[columns]
    incidence = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(size, len(vectors.words)))
    total = np.asarray(incidence.sum(axis=1)).ravel()
    known = np.flatnonzero(total > 0)
    summed = incidence[known] @ vectors.vectors(vectors.words).double().numpy()
    return known, torch.from_numpy((summed / total[known, None]).astype(np.float32))


def text_of(token: Token | None) -> str:
    """A token's characters without blanks around them; empty where it is not text."""
    return "" if token is None else (token.text() or "").strip()


def word_of(token: Token | None, known: Vectors | Set[str]) -> str:
    """The word that stands for a token: as it is written where `known` has it so, else in lower case, in which vectors are
    trained here and in which the subwords of others are most frequent."""
    text = text_of(token)
    return text if text in known else text.lower()


def _side(path: str | None, texts: Iterable[str], config: SpaceConfig, what: str, spread: Executor) -> Vectors:
    if path is not None:
        return files.read(path)
    return train((" ".join(dictionary.words(text)) for text in texts), config, what, spread)
