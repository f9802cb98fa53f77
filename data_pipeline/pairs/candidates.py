"""Queries with candidates to rank, in mteb's form: `query`, and the lists `positive` and `negative`."""

from dataclasses import dataclass, field

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.pairs import rows
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean

_COLUMNS = ("query", "positive", "negative")
_KINDS = {"query": rows.TEXT, "positive": rows.TEXTS, "negative": rows.TEXTS}
_LISTS = {name: pa.list_(pa.string()) for name in ("positive", "negative")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Cleaned queries and their candidates as parallel lists."""

    queries: list[str] = field(default_factory=list)
    positives: list[list[str]] = field(default_factory=list)
    """Of each query, at least one."""
    negatives: list[list[str]] = field(default_factory=list)
    """Likewise."""

    def __len__(self) -> int:
        return len(self.queries)


def load(spec: str, cache: str, *, key: str) -> Candidates:
    """Reads and cleans the queries at `spec`. As mteb does, skips those without a positive or without a negative.

    Raises:
        DataError: no file, a column that is missing or of another type, or no query left.
    """
    found = Candidates()
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        table = documents.read(unit, _COLUMNS, (), key=key, types=_LISTS)
        rows.check_types(table, f"{key}={unit.path}", _KINDS)
        for row in table.to_pylist():
            query, positives, negatives = clean(row["query"] or ""), _cleaned(row["positive"]), _cleaned(row["negative"])
            if query and positives and negatives:
                found.queries.append(query)
                found.positives.append(positives)
                found.negatives.append(negatives)
    if not found.queries:
        raise DataError("no query has a positive and a negative.", f"{key}={spec}", "Give both lists for each query.")
    return found


def _cleaned(texts: list[str | None] | None) -> list[str]:
    return [cleaned for text in texts or [] if (cleaned := clean(text or ""))]
