"""Vectors of words and tokens: training, files, spaces and the rotation between two spaces.

The table of families that are trained on text is here. To add a family: add its module, an entry here, and a test of its own
claim. Its settings then appear wherever a method trains vectors, e.g. `transfer.methods.focus.NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from data_pipeline.errors import ConfigError
from trainer.word_vectors import fasttext, ppmi

if TYPE_CHECKING:
    from trainer.executor import Executor
    from trainer.word_vectors.vectors import Vectors

    VectorKind = str


class Train(Protocol):
    """Trains vectors of the words in `lines`, which blanks separate.

    Raises:
        DataError: there is too little text; the error names it as `what`.
    """

    def __call__(self, lines: Iterable[str], config: Any, what: str, executor: Executor, /) -> Vectors: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the table: the config, the function and the paper."""

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
    """A dataclass with a section of settings for each entry of the table; a base for the config of a method.

    Args:
        defaults: values that replace the defaults of an entry, by its name.
    """
    fields: list[Any] = []
    for name, entry in VECTORS.items():
        config: Callable[..., Any] = entry.config
        make = partial(config, **defaults.get(name, {}))
        fields.append((name, entry.config, field(default_factory=make)))
    return make_dataclass("VectorSections", fields, frozen=True, kw_only=True)


def train(lines: Iterable[str], config: Any, what: str, executor: Executor) -> Vectors:
    """Trains vectors of the family `config.kind`, with its section of `config`.

    Raises:
        ConfigError: there is no such family.
        DataError: there is too little text.
    """
    if config.kind not in VECTORS:
        raise ConfigError(f"{config.kind} is no family of vectors.", "kind", f"Choose from: {', '.join(VECTORS)}.")
    return VECTORS[config.kind].train(lines, getattr(config, config.kind), what, executor)
