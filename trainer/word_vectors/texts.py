"""The text that vectors, dictionaries and alignments are learned from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a method may learn from. Nothing held out is in here."""

    corpus: Callable[[], Iterator[str]]
    """Documents in the new language, one pass a call."""
    anchors: list[str]
    """The source language's side of the pairs."""
    positives: list[str]
    """The new language's side, parallel to `anchors`."""
    languages: "Mapping[str, Texts]" = field(default_factory=dict)
    """The same by language, where the text is in several and there are pairs in each; else empty."""
