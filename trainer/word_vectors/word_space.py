"""Aligns word vectors of two languages in one space, and derives token vectors from word vectors."""

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
    """The source of the word vectors, and of the dictionary that aligns them."""

    kind: VectorKind = "fasttext"
    """The family of vectors to train on the texts of a side without given vectors."""
    source_vectors: str | None = None
    """A `.bin` or `.vec` file for the source language, e.g. of fasttext.cc."""
    target_vectors: str | None = None
    """The same for the new language."""
    dictionary: str | None = None
    """A TSV of source word and new-language word; mined from the text pairs if not given."""


def align_vectors(texts: Texts, config: SpaceConfig, executor: Executor) -> tuple[Vectors, Vectors]:
    """The vectors of the source language and of the new language in one space: the source vectors are rotated.

    With several new languages, each has its own vectors and its own rotation into the space of the source, since no single
    rotation fits all. Target vectors or a dictionary in the config are used for all languages together.

    Raises:
        DataError: there is too little text, the widths differ, or the vectors contain both words of no dictionary entry.
    """
    if texts.languages and config.target_vectors is None and config.dictionary is None:
        return _align_languages(texts, config, executor)
    source = _load_or_train(config.source_vectors, texts.anchors, config, "anchors", executor)
    target = _load_or_train(config.target_vectors, [*texts.corpus(), *texts.positives], config, "text", executor)
    if config.dictionary is not None:
        pairs = dictionary.read(config.dictionary)
    else:
        pairs = dictionary.mine(texts.anchors, texts.positives)
    return RotatedVectors(source, rotation(pairs, source, target, config.dictionary or "mined from pairs")), target


def _align_languages(texts: Texts, config: SpaceConfig, executor: Executor) -> tuple[Vectors, Vectors]:
    """Skips languages with too little text for vectors or a dictionary; if all are skipped, raises the last error."""
    source = _load_or_train(config.source_vectors, texts.anchors, config, "anchors", executor)
    parts: list[Vectors] = []
    for number, (lang, part) in enumerate(texts.languages.items(), 1):
        try:
            target = _load_or_train(None, [*part.corpus(), *part.positives], config, f"text in {lang}", executor)
            pairs = dictionary.mine(part.anchors, part.positives)
            parts.append(RotatedVectors(target, rotation(pairs, source, target, f"mined from pairs in {lang}").T))
        except DataError:
            if number == len(texts.languages) and not parts:
                raise
    return source, MultilingualVectors(parts)


def rotation(pairs: list[tuple[str, str]], source: Vectors, target: Vectors, name: str) -> torch.Tensor:
    """The rotation of source vectors into the target space, float64 [A, A], from the dictionary entries with known words.

    An entry counts once for each distinct combination of spellings (as is, lower case, title case). WECHSEL's code counts
    repeated spellings too, so an entry in lower case has weight four there; vectors of one case give the same rotation.
    """
    spelled_pairs = [
        (s, t)
        for left, right in pairs
        for s in dict.fromkeys((left, left.lower(), left.title()))
        for t in dict.fromkeys((right, right.lower(), right.title()))
        if s in source and t in target
    ]
    if not spelled_pairs:
        raise DataError(
            f"none of its {len(pairs):,} pairs has both words in the vectors.",
            f"dictionary={name}",
            "Give a dictionary from the source language to the new one, one pair per line, or more text.",
        )
    return procrustes(source.vectors(s for s, _ in spelled_pairs), target.vectors(t for _, t in spelled_pairs))


def token_vectors(
    tokenizer: PreTrainedTokenizerFast, tokens: list[Token | None], ids: NDArray[np.int64], vectors: Vectors
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The `ids` of tokens that have a vector, and their vectors [n, A].

    If the vectors have subwords, from the token's characters (WECHSEL's default); else the frequency-weighted mean of the
    words that the token occurs in (WECHSEL's other mode).
    """
    import torch

    if vectors.has_subwords:
        return token_vectors_by_characters(tokens, ids, vectors)
    all_ids, found_vectors = token_vectors_by_words(tokenizer, vectors, vectors.counts, ("{}", " {}"))
    is_wanted = np.isin(all_ids, ids)
    return all_ids[is_wanted], found_vectors[torch.from_numpy(is_wanted)]


def token_vectors_by_characters(
    tokens: list[Token | None], ids: NDArray[np.int64], vectors: Vectors
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The `ids` of ordinary tokens that are valid text and have a vector, and their vectors [n, A]."""
    words_by_id = [(int(number), word_of(tokens[number], vectors)) for number in ids]
    nonempty = [(number, text) for number, text in words_by_id if text]
    rows = vectors.vectors(text for _, text in nonempty)
    has_vector = rows.norm(dim=1) > 0
    return np.array([number for number, _ in nonempty], np.int64)[has_vector.numpy()], rows[has_vector]


def token_vectors_by_words(
    tokenizer: PreTrainedTokenizerFast, vectors: Vectors, weights: NDArray[np.float64], spellings: Iterable[str]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The ids of tokens that occur in a word, and the weighted mean [n, A] of the vectors of these words.

    Args:
        weights: [words], the weight of each of `vectors.words`.
        spellings: templates for a word before it is tokenised; `{}` stands for the word, `{^}` for the word in title case.
            A token counts once per spelling of a word.
    """
    import scipy.sparse
    import torch

    rows, columns = [], []
    for spelling in spellings:
        words = [spelling.replace("{^}", word.title()).replace("{}", word) for word in vectors.words]
        for word_number, encoded in enumerate(tokenizer.backend_tokenizer.encode_batch_fast(words, add_special_tokens=False)):
            pieces = set(encoded.ids)
            rows += sorted(pieces)
            columns += [word_number] * len(pieces)
    size = max(tokenizer.get_vocab().values()) + 1
    values = np.asarray(weights, np.float64)[columns]
    incidence = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(size, len(vectors.words)))
    total = np.asarray(incidence.sum(axis=1)).ravel()
    ids = np.flatnonzero(total > 0)
    sums = incidence[ids] @ vectors.vectors(vectors.words).double().numpy()
    return ids, torch.from_numpy((sums / total[ids, None]).astype(np.float32))


def text_of(token: Token | None) -> str:
    """A token's characters without surrounding blanks; empty if the token is not text."""
    return "" if token is None else (token.text() or "").strip()


def word_of(token: Token | None, vocabulary: Vectors | Set[str]) -> str:
    """The word to look up for a token: as written if it is in `vocabulary`, else in lower case.

    Our vectors are trained on lower case, and subwords in lower case are the most frequent ones in other vectors.
    """
    text = text_of(token)
    return text if text in vocabulary else text.lower()


def _load_or_train(path: str | None, texts: Iterable[str], config: SpaceConfig, what: str, executor: Executor) -> Vectors:
    if path is not None:
        return files.read(path)
    return train((" ".join(dictionary.words(text)) for text in texts), config, what, executor)
