"""The text from which vectors, dictionaries and alignments are learned."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The text that a method may learn from, without held-out text."""

    corpus: Callable[[], Iterator[str]]
    """Iterates over the documents in the new language, once per call."""
    anchors: list[str]
    """The source-language side of the text pairs."""
    positives: list[str]
    """The new-language side, parallel to `anchors`."""
    languages: "Mapping[str, Texts]" = field(default_factory=dict)
    """The texts by language, if there are several languages with text pairs in each; else empty."""
