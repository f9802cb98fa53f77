"""Text pairs for contrastive training and retrieval: `anchor`, `positive`, optional `negatives`, `lang` and `id`."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean
from data_pipeline.text.reserved import ReservedSentences

_MAX_LISTED = 20
"""Most ids in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Cleaned pairs as parallel lists. `negatives[i]` is empty if pair i has none."""

    ids: list[str]
    anchors: list[str]
    positives: list[str]
    negatives: list[list[str]]
    langs: list[str] = field(default_factory=list)
    """Language of each pair's new side; `und` if it has none."""

    def __len__(self) -> int:
        return len(self.anchors)


def load(spec: str | None, cache: str, *, key: str) -> Pairs:
    """Reads and cleans the pairs at `spec`; empty if `spec` is None.

    Raises:
        DataError: no file, a column that is missing or not text, a repeated id, or no pair left.
    """
    pairs = Pairs(ids=[], anchors=[], positives=[], negatives=[])
    if spec is None:
        return pairs
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        table = documents.read(unit, ("anchor", "positive"), ("negatives", "id", "lang"), key=key)
        _check_types(table, f"{key}={unit.path}")
        for number, row in enumerate(table.to_pylist()):
            anchor, positive = clean(row["anchor"] or ""), clean(row["positive"] or "")
            if not anchor or not positive:
                continue
            name = row.get("id")
            pairs.langs.append(str(row.get("lang") or "und"))
            # The key keeps the ids of train/pairs.jsonl and test/pairs.jsonl apart.
            pairs.ids.append(f"{key}/{documents.row_id(unit, number)}" if name is None else str(name))
            pairs.anchors.append(anchor)
            pairs.positives.append(positive)
            pairs.negatives.append([text for text in map(clean, filter(None, row.get("negatives") or [])) if text])
    if not pairs.ids:
        raise DataError("no pair with text on both sides.", f"{key}={spec}", "Give rows with `anchor` and `positive`.")
    if repeated := next((name for name, count in Counter(pairs.ids).items() if count > 1), None):
        raise DataError(f"the id {repeated!r} occurs more than once.", f"{key}={spec}", "Give each pair its own id.")
    return pairs


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


def _check_types(table: pa.Table, where: str) -> None:
    """Checks that anchors and positives hold text, and negatives lists of text; else raises DataError."""
    for name in ("anchor", "positive", "negatives"):
        kind = table.schema.field(name).type if name in table.column_names else pa.null()
        if name == "negatives" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        elif name == "negatives" and not pa.types.is_null(kind):
            raise DataError(f"column negatives holds {kind}, not lists of text.", where, "Write it as lists of strings.")
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise DataError(f"column {name} holds {kind}, not text.", where, "Write it as a column of strings.")
