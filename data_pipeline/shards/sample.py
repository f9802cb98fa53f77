"""Samples text for training a tokenizer or word vectors: bounded in size, balanced over languages, the same on every run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline import keyed_random
from data_pipeline.order.mixture import temperature_weights
from data_pipeline.shards.corpus import read_texts

_MAX_REPEATS = 8
"""Most copies of a document: with more, the words of a few documents would become tokens."""
_ALPHA = 0.3
"""Exponent of `sampling_rates`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Texts, and the UTF-8 bytes of each language in them and in the whole corpus."""

    texts: list[str]
    bytes: dict[str, int]
    corpus_bytes: dict[str, int]


def balanced_sample(paths: Sequence[str], more: Iterable[str], *, alpha: float, limit: int, seed: int) -> Sample:
    """Samples a corpus, languages in proportion to bytes ** alpha, and `more` texts that have no language.

    A hash of the seed and the document's place thins out a language above its share; the documents of a language below its
    share repeat. A single language within the limit is taken whole.

    Args:
        limit: most UTF-8 bytes, exceeded by the size of a document at most.
    """
    sizes: Counter[str] = Counter()
    for lang, text in read_texts(paths):
        sizes[lang] += len(text.encode())
    extra = list(more)
    total = sizes.total() + sum(len(text.encode()) for text in extra)
    scale = min(1.0, limit / max(1, total))
    rates = _rates(sizes, alpha, scale)
    texts = [text for text, copies in zip(extra, _copies(np.full(len(extra), scale), ("more", seed)), strict=True) if copies]
    sampled: Counter[str] = Counter()
    for path in paths:
        documents = list(read_texts([path]))
        copies = _copies(np.array([rates[lang] for lang, _ in documents]), ("corpus", seed, path.rsplit("/", 1)[-1]))
        for (lang, text), times in zip(documents, copies.tolist(), strict=True):
            texts += [text] * times
            sampled[lang] += times * len(text.encode())
    return Sample(texts=texts, bytes=dict(sorted(sampled.items())), corpus_bytes=dict(sorted(sizes.items())))


def sampling_rates(sizes: Mapping[str, int], limit: int) -> dict[str, float]:
    """The share of each language's documents to take for `limit` UTF-8 bytes in all.

    Languages get bytes in proportion to bytes ** 0.3. All shares are 1 if the whole text is within the limit.
    """
    scale = min(1.0, limit / max(1, sum(sizes.values())))
    if scale == 1.0:
        return dict.fromkeys(sizes, 1.0)
    return {lang: min(1.0, rate) for lang, rate in _rates(sizes, _ALPHA, scale).items()}


def thin(paths: Iterable[str], rates: Mapping[str, float], seed: int) -> Iterator[tuple[str, str]]:
    """(language, text) of a share of a corpus' documents, in order. The seed and the documents' places decide which."""
    for path in paths:
        documents = list(read_texts([path]))
        copies = _copies(np.array([rates.get(lang, 1.0) for lang, _ in documents]), ("text", seed, path.rsplit("/", 1)[-1]))
        yield from (document for document, count in zip(documents, copies.tolist(), strict=True) if count)


def _rates(sizes: Mapping[str, int], alpha: float, scale: float) -> dict[str, float]:
    """Average copies of each language's documents when `scale` times the whole text is divided anew among languages."""
    total = sum(sizes.values()) * scale
    weights = temperature_weights(sizes, alpha)
    return {lang: min(_MAX_REPEATS, total * weights[lang] / size) if size else 0.0 for lang, size in sizes.items()}


def _copies(rates: np.ndarray, names: tuple[object, ...]) -> np.ndarray:
    """Copies of each document, int: its rate, randomly rounded up or down."""
    chances = keyed_random.uniforms(keyed_random.key("tokenizer sample", *names), np.arange(len(rates)))
    whole = np.floor(rates)
    return (whole + (chances < rates - whole)).astype(np.int64)
