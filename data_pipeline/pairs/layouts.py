"""The layouts of pairs that other packages write, recognised by their columns and read as ours.

| layout | columns |
|---|---|
| Scion | `anchor`, `positive` or `positives`, and those of `rows.KINDS` |
| sentence-transformers | `anchor`, `positive`, `negative` or `negative_1`, `negative_2` ..., and `scores` |
| FlagEmbedding | `query`, `pos`, `neg`, `pos_scores`, `neg_scores`, `prompt`, `type` |

All may have `id`, `lang`, `task`, `prompt` and `in_batch_negatives`; other columns are ignored. As in FlagEmbedding, pairs of a
file or folder whose name ends in `no_in_batch_neg` share no candidates.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.pairs import rows
from data_pipeline.sources import documents
from data_pipeline.sources.documents import Unit

_ALWAYS = ("id", "lang", "task", "prompt", "in_batch_negatives")
_NEGATIVE = re.compile(r"negative(?:_(\d+))?")
_EXPECTED = (
    "Pairs are anchor with positive or positives, and negatives; or, of sentence-transformers, anchor, positive and negative "
    "or negative_1 to negative_n; or, of FlagEmbedding, query, pos and neg."
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file are read."""

    columns: tuple[str, ...]
    rename: Callable[[Row], Row]
    """A row of these columns as one of `rows.KINDS`."""


def read(unit: Unit, *, key: str) -> Iterator[Row]:
    """The rows of a unit, with the columns of `rows.KINDS`, `id` and `lang`.

    Raises:
        DataError: the columns are of no layout, or of several, or hold values of another type.
    """
    names = documents.columns(unit, key=key)
    if not names:
        return
    where = f"{key}={unit.path}"
    layout = recognise(names, where)
    table = documents.read(
        unit, (), tuple(name for name in dict.fromkeys((*layout.columns, *_ALWAYS)) if name in names), key=key
    )
    rows.check_types(table, where)
    alone = {"in_batch_negatives": False} if layout.rename is _from_flag_embedding and _is_marked(unit.path) else {}
    for row in table.to_pylist():
        yield layout.rename(row) | alone


def recognise(names: list[str], where: str) -> Layout:
    """The layout of a file with these columns.

    Raises:
        DataError: there is none, or more than one; names what was found and what is expected.
    """
    given = set(names)
    is_anchored = "anchor" in given and bool({"positive", "positives"} & given)
    flags = [name for name in ("query", "pos") if name in given]
    negatives = sorted((name for name in names if _NEGATIVE.fullmatch(name)), key=_number)
    if is_anchored and len(flags) == 2:
        raise DataError("it has the columns anchor and query, positive and pos: two layouts.", where, _EXPECTED)
    if len(flags) == 2:
        return Layout(("query", "pos", "neg", "pos_scores", "neg_scores", "type"), _from_flag_embedding)
    if not is_anchored:
        if {"sentence1", "sentence2"} <= given:
            raise DataError(
                "sentence1 and sentence2 are pairs of any similarity.", where, f"Give those as evaluate.sts=. {_EXPECTED}"
            )
        missing = [name for name in ("anchor", "positive") if name not in given]
        raise DataError(f"column {', '.join(missing)} is missing; the file has {', '.join(names)}.", where, _EXPECTED)
    if not negatives:
        return Layout(tuple(rows.KINDS), dict)
    if mixed := sorted({"positives", "negatives", "negative_scores"} & given):
        raise DataError(f"it has the columns {negatives[0]} and {mixed[0]}: two layouts.", where, _EXPECTED)

    def rename(row: Row) -> Row:
        return _from_sentence_transformers(row, negatives, where)

    return Layout(("anchor", "positive", *negatives, "positive_score", "scores"), rename)


def _number(name: str) -> int:
    """The n of `negative_n`; 0 for `negative`."""
    return int(name.rpartition("_")[2]) if "_" in name else 0


def _from_sentence_transformers(row: Row, negatives: list[str], where: str) -> Row:
    """A triplet or tuple: its negatives as a list, and `scores`, which are of the positive and then of each negative."""
    scores = row.pop("scores", None)
    texts = [row.pop(name, None) for name in negatives]
    if scores is None:
        return row | {"negatives": texts}
    if len(scores) != 1 + len(texts):
        raise DataError(
            f"a row has {len(scores)} scores and {1 + len(texts)} texts beside the anchor.", where, "Give a score for each."
        )
    return row | {"negatives": texts, "positive_score": scores[0], "negative_scores": scores[1:]}


def _from_flag_embedding(row: Row) -> Row:
    """A row of lists; `type` is the task if there is none."""
    names = {"query": "anchor", "pos": "positives", "neg": "negatives", "pos_scores": "positive_scores",
             "neg_scores": "negative_scores"}  # fmt: skip
    kind = row.pop("type", None)
    made = {names.get(name, name): value for name, value in row.items()}
    return made if kind is None or made.get("task") else made | {"task": kind}


def _is_marked(path: str) -> bool:
    """Whether the name of the file or of its folder ends in `no_in_batch_neg`."""
    folder, name = os.path.split(path)
    return any(part.endswith("no_in_batch_neg") for part in (os.path.splitext(name)[0], folder))
