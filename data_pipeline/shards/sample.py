"""The text that a tokenizer or word vectors are trained on: of bounded size, balanced over languages, the same on every run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline import keyed_random
from data_pipeline.order.mixture import temperature_weights
from data_pipeline.shards.corpus import read_texts

_REPEATS = 8
"""How often a document comes at most: more would make tokens of the words of a few documents."""


_ALPHA = 0.3
"""Of `sampling_rates`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Texts, and the UTF-8 bytes of each language in them and in the whole corpus."""

    texts: list[str]
    bytes: dict[str, int]
    corpus_bytes: dict[str, int]


def balanced_sample(paths: Sequence[str], more: Iterable[str], *, alpha: float, limit: int, seed: int) -> Sample:
    """Documents of a corpus, languages in proportion to bytes ** alpha, and `more` texts of no language.

    A language that has more than its share is thinned out by a hash of the seed and the document's place; one that has less
    comes several times. A single language within the limit comes whole.

    Args:
        limit: UTF-8 bytes at most, but for the size of a document.
    """
    sizes: Counter[str] = Counter()
    for lang, text in read_texts(paths):
        sizes[lang] += len(text.encode())
    added = list(more)
    whole = sizes.total() + sum(len(text.encode()) for text in added)
    scale = min(1.0, limit / max(1, whole))
    rates = _rates(sizes, alpha, scale)
    texts = [text for text, copies in zip(added, _copies(np.full(len(added), scale), ("more", seed)), strict=True) if copies]
    taken: Counter[str] = Counter()
    for path in paths:
        found = list(read_texts([path]))
        copies = _copies(np.array([rates[lang] for lang, _ in found]), ("corpus", seed, path.rsplit("/", 1)[-1]))
        for (lang, text), times in zip(found, copies.tolist(), strict=True):
            texts += [text] * times
            taken[lang] += times * len(text.encode())
    return Sample(texts=texts, bytes=dict(sorted(taken.items())), corpus_bytes=dict(sorted(sizes.items())))


def sampling_rates(sizes: Mapping[str, int], limit: int) -> dict[str, float]:
    """Which share of each language's documents is within `limit` UTF-8 bytes, languages in proportion to bytes ** 0.3; all of
    them where the whole text is."""
    scale = min(1.0, limit / max(1, sum(sizes.values())))
    if scale == 1.0:
        return dict.fromkeys(sizes, 1.0)
    return {lang: min(1.0, rate) for lang, rate in _rates(sizes, _ALPHA, scale).items()}


def thin(paths: Iterable[str], rates: Mapping[str, float], seed: int) -> Iterator[tuple[str, str]]:
    """(language, text) of a share of a corpus' documents, in order; which ones depends on the seed and their place."""
    for path in paths:
        found = list(read_texts([path]))
        copies = _copies(np.array([rates.get(lang, 1.0) for lang, _ in found]), ("text", seed, path.rsplit("/", 1)[-1]))
        yield from (document for document, copy in zip(found, copies.tolist(), strict=True) if copy)


def _rates(sizes: Mapping[str, int], alpha: float, scale: float) -> dict[str, float]:
    """How often each language's documents come on average: as much text as there is, times `scale`, shared out anew."""
    total = sum(sizes.values()) * scale
    weights = temperature_weights(sizes, alpha)
    return {lang: min(_REPEATS, total * weights[lang] / size) if size else 0.0 for lang, size in sizes.items()}


def _copies(rates: np.ndarray, names: tuple[object, ...]) -> np.ndarray:
    """How often each document comes, int: its rate, rounded up or down by chance."""
    chances = keyed_random.uniforms(keyed_random.key("tokenizer sample", *names), np.arange(len(rates)))
    whole = np.floor(rates)
    return (whole + (chances < rates - whole)).astype(np.int64)
