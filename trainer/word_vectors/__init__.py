"""Vectors of words and tokens: training, files, spaces and the rotation between two of them.

The table of families that are trained on text is here. Adding one: its module, one row, one test for its own claim. Its
settings then stand beside the others' wherever a method trains vectors, e.g. `transfer.methods.focus.NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trainer.word_vectors import fasttext, ppmi

if TYPE_CHECKING:
    from trainer.executor import Executor
    from trainer.word_vectors.vectors import Vectors

    VectorKind = str


class Train(Protocol):
    """Vectors of the words in `lines`, which blanks separate.

    Raises:
        DataError: too little text; names it as `what`.
    """

    def __call__(self, lines: Iterable[str], config: Any, what: str, executor: Executor, /) -> Vectors: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: the settings, the function and where it was published."""

    config: type[Any]
    train: Train
    paper: str


VECTORS: dict[str, Entry] = {
    "fasttext": Entry(fasttext.FastTextConfig, fasttext.train, "Bojanowski et al., TACL 2017 (arXiv:1607.04606)"),
    "ppmi": Entry(ppmi.PpmiConfig, ppmi.train, "Levy, Goldberg and Dagan, TACL 2015"),
}
if not TYPE_CHECKING:
    VectorKind = Literal[tuple(VECTORS)]


def sections(**defaults: dict[str, Any]) -> Any:
    """A dataclass with a field of settings for each row of the table, by its name; a base for the settings of a method.

    Args:
        defaults: of a row, other values than its own defaults.
    """
    fields: list[Any] = []
    for name, entry in VECTORS.items():
        config: Callable[..., Any] = entry.config
        make = partial(config, **defaults.get(name, {}))
        fields.append((name, entry.config, field(default_factory=make)))
    return make_dataclass("VectorSections", fields, frozen=True, kw_only=True)


def train(lines: Iterable[str], config: Any, what: str, executor: Executor) -> Vectors:
    """Vectors of the family that `config.kind` names, with its section of `config`.

    Raises:
        DataError: too little text.
    """
    return VECTORS[config.kind].train(lines, getattr(config, config.kind), what, executor)
