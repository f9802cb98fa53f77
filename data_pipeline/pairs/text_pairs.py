"""Text pairs for contrastive training and retrieval.

A row of a file has `anchor`, one `positive` or several `positives`, and optionally `negatives`, `positive_score` (or
`positive_scores`), `negative_scores`, `task`, `prompt`, `in_batch_negatives`, `lang` and `id`. Files of other packages are read
as well (`layouts`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.pairs import layouts, rows
from data_pipeline.pairs.rows import Pair
from data_pipeline.sources import documents
from data_pipeline.text.reserved import ReservedSentences

_MAX_LISTED = 20
"""Most ids in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Cleaned pairs as parallel lists. Columns that are not given get their defaults, except `langs`."""

    ids: list[str]
    anchors: list[str]
    """Without prompts."""
    positives: list[str]
    negatives: list[list[str]]
    """An empty list for a pair without hard negatives."""
    langs: list[str] = field(default_factory=list)
    """Language of each pair's new side; `und` if it has none."""
    positive_scores: list[float] = field(default_factory=list)
    """A teacher's score of each pair; NaN where missing."""
    negative_scores: list[list[float]] = field(default_factory=list)
    """The same for each hard negative."""
    tasks: list[str] = field(default_factory=list)
    """The task that a pair is of; empty for none."""
    prompts: list[str] = field(default_factory=list)
    """What stands in front of the anchor when a model reads it."""
    in_batch: list[bool] = field(default_factory=list)
    """Whether documents of other pairs are negatives of this one, and its documents are theirs."""
    empty_rows: int = 0
    """Rows of the files that gave no pair: one side has no text."""

    def __post_init__(self) -> None:
        count = len(self.anchors)
        self.positive_scores.extend([math.nan] * (count - len(self.positive_scores)))
        missing = self.negatives[len(self.negative_scores) :]
        self.negative_scores.extend([math.nan] * len(texts) for texts in missing)
        self.tasks.extend([""] * (count - len(self.tasks)))
        self.prompts.extend([""] * (count - len(self.prompts)))
        self.in_batch.extend([True] * (count - len(self.in_batch)))

    def __len__(self) -> int:
        return len(self.anchors)

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> "Pairs":
        """The pairs as columns, in their order."""
        columns = tuple(zip(*pairs, strict=True)) or ((),) * len(Pair._fields)
        names = (_PLURALS.get(name, f"{name}s") for name in Pair._fields)
        made: dict[str, Any] = {name: list(column) for name, column in zip(names, columns, strict=True)}
        return cls(**made)

    @property
    def queries(self) -> list[str]:
        """The anchors with their prompts, as a model reads them."""
        return [prompt + anchor for prompt, anchor in zip(self.prompts, self.anchors, strict=True)]

    def take(self, places: Sequence[int]) -> "Pairs":
        """Some of the pairs, in the order of `places`."""
        columns = {column.name: getattr(self, column.name) for column in fields(self) if column.name != "empty_rows"}
        made: dict[str, Any] = {name: [values[n] for n in places] if values else [] for name, values in columns.items()}
        return Pairs(**made)


_PLURALS = {"negatives": "negatives", "negative_scores": "negative_scores", "in_batch": "in_batch"}


def load(spec: str | None, cache: str, *, key: str) -> Pairs:
    """Reads and cleans the pairs at `spec`; empty if `spec` is None.

    Raises:
        DataError: no file, a column that is missing or of another type, scores that do not match their texts, a repeated id,
            or no pair left.
    """
    if spec is None:
        return Pairs.of([])
    empty: Counter[str] = Counter()
    pairs = replace(Pairs.of(_read(spec, cache, key, empty)), empty_rows=empty["rows"])
    if not pairs.ids:
        raise DataError("no pair with text on both sides.", f"{key}={spec}", "Give rows with `anchor` and `positive`.")
    if repeated := next((name for name, count in Counter(pairs.ids).items() if count > 1), None):
        raise DataError(f"the id {repeated!r} occurs more than once.", f"{key}={spec}", "Give each pair its own id.")
    return pairs


def _read(spec: str, cache: str, key: str, empty: Counter[str]) -> Iterator[Pair]:
    """The pairs of all rows of all files; counts the `rows` that have none in `empty`."""
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        for number, row in enumerate(layouts.read(unit, key=key)):
            # The key keeps the ids of train/pairs.jsonl and test/pairs.jsonl apart.
            name = f"{key}/{documents.row_id(unit, number)}" if row.get("id") is None else str(row["id"])
            found = list(rows.pairs_of(row, name, f"{key}={unit.path}, the row {name}"))
            empty["rows"] += not found
            yield from found


def check_learnable(pairs: Pairs) -> None:
    """Refuses pairs that teach nothing: no negatives of their own, and none from the batch.

    Raises:
        DataError: names them.
    """
    rows_of = zip(pairs.ids, pairs.negatives, pairs.in_batch, strict=True)
    if empty := [name for name, negatives, in_batch in rows_of if not negatives and not in_batch]:
        raise DataError(
            f"{len(empty):,} of {len(pairs):,} pairs have in_batch_negatives=false and no negatives, those with the ids "
            f"{_first(empty)}.",
            "pairs",
            "Give them negatives (`scion mine` finds some), or leave in_batch_negatives out.",
        )


def check_disjoint(train: Pairs, test: Pairs) -> None:
    """Refuses a test set that overlaps with the training pairs.

    Raises:
        DataError: both have the same id, or a training pair contains a test sentence on either side (see
            `ReservedSentences`).
    """
    common = sorted(set(train.ids) & set(test.ids))
    if common:
        raise DataError(
            f"{len(common)} of {len(test)} ids are also in pairs= (the first is {common[0]!r}).",
            "test_pairs",
            "Take them out of one side: a model must not be tested on what it was trained on.",
        )
    reserved = ReservedSentences.of([*test.anchors, *test.positives])
    sides = zip(train.ids, train.anchors, train.positives, train.negatives, strict=True)
    leaks = [name for name, *texts, negatives in sides if any(map(reserved.occurs_in, [*texts, *negatives]))]
    if leaks:
        raise DataError(
            f"a sentence of test_pairs= stands in {len(leaks):,} of {len(train):,} pairs, those with the ids {_first(leaks)}.",
            "pairs",
            "Remove those pairs, or the sentences from test_pairs=: a model must not be tested on what it was trained on. "
            "The search ignores case and blanks, and finds a sentence of five words within a longer text, too.",
        )


def _first(names: list[str]) -> str:
    """The first names, as a message lists them."""
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
