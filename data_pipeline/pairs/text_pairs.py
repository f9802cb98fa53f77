"""Pairs for contrastive training and retrieval: `anchor`, `positive`, optional `negatives`, `lang` and `id`."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean
from data_pipeline.text.reserved import ReservedSentences

_NAMED = 20
"""Ids in a message at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Cleaned pairs, parallel lists. `negatives[i]` is empty when the row names none."""

    ids: list[str]
    anchors: list[str]
    positives: list[str]
    negatives: list[list[str]]
    langs: list[str] = field(default_factory=list)
    """Of each pair's new side; `und` where a row names none."""

    def __len__(self) -> int:
        return len(self.anchors)


def load(spec: str | None, cache: str, *, key: str) -> Pairs:
    """Reads and cleans the pairs at `spec`; none where nothing is given.

    Raises:
        DataError: no file, a column missing or not text, an id twice, or no pair left.
    """
    rows = Pairs(ids=[], anchors=[], positives=[], negatives=[])
    if spec is None:
        return rows
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        table = documents.read(unit, ("anchor", "positive"), ("negatives", "id", "lang"), key=key)
        _check_types(table, f"{key}={unit.path}")
        for number, row in enumerate(table.to_pylist()):
            anchor, positive = clean(row["anchor"] or ""), clean(row["positive"] or "")
            if not anchor or not positive:
                continue
            given = row.get("id")
            rows.langs.append(str(row.get("lang") or "und"))
            # Of train/pairs.jsonl and test/pairs.jsonl the rows are others.
            rows.ids.append(f"{key}/{documents.row_id(unit, number)}" if given is None else str(given))
            rows.anchors.append(anchor)
            rows.positives.append(positive)
            rows.negatives.append([text for text in map(clean, filter(None, row.get("negatives") or [])) if text])
    if not rows.ids:
        raise DataError("no pair with text on both sides.", f"{key}={spec}", "Give rows with `anchor` and `positive`.")
    if twice := next((name for name, count in Counter(rows.ids).items() if count > 1), None):
        raise DataError(f"the id {twice!r} occurs more than once.", f"{key}={spec}", "Give each pair its own id.")
    return rows


def check_disjoint(train: Pairs, test: Pairs) -> None:
    """Refuses a test set that training would see.

    Raises:
        DataError: an id is on both sides, or a test sentence stands in a training pair, on either side of it (see
            `ReservedSentences`).
    """
    shared = sorted(set(train.ids) & set(test.ids))
    if shared:
        raise DataError(
            f"{len(shared)} of {len(test)} ids are also in pairs= (the first is {shared[0]!r}).",
            "test_pairs",
            "Take them out of one side: a model must not be tested on what it was trained on.",
        )
    reserved = ReservedSentences.of([*test.anchors, *test.positives])
    sides = zip(train.ids, train.anchors, train.positives, train.negatives, strict=True)
    same = [name for name, *texts, negatives in sides if any(map(reserved.occurs_in, [*texts, *negatives]))]
    if same:
        raise DataError(
            f"a sentence of test_pairs= stands in {len(same):,} of {len(train):,} pairs, those with the ids {_listed(same)}.",
            "pairs",
            "Remove those pairs, or the sentences from test_pairs=: a model must not be tested on what it was trained on. "
            "Case and blanks count for nothing, and a sentence of five words is found within a longer text, too.",
        )


def _listed(names: list[str]) -> str:
    """The first of many."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _check_types(table: pa.Table, where: str) -> None:
    for name in ("anchor", "positive", "negatives"):
        kind = table.schema.field(name).type if name in table.column_names else pa.null()
        if name == "negatives" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        elif name == "negatives" and not pa.types.is_null(kind):
            raise DataError(f"column negatives holds {kind}, not lists of text.", where, "Write it as lists of strings.")
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise DataError(f"column {name} holds {kind}, not text.", where, "Write it as a column of strings.")
