"""Sentence pairs with a gold score of their similarity: `sentence1`, `sentence2`, `score`, optional `lang`."""

import math
from dataclasses import dataclass, field

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedPairs:
    """Cleaned pairs as parallel lists."""

    lefts: list[str] = field(default_factory=list)
    rights: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    """On any scale; higher is more similar."""
    langs: list[str] = field(default_factory=list)
    """`und` for pairs without a language."""

    def __len__(self) -> int:
        return len(self.scores)


def load(spec: str | None, cache: str, *, key: str) -> GradedPairs:
    """Reads and cleans the pairs at `spec`; empty if `spec` is None. Skips pairs without text on a side or without a finite score.

    Raises:
        DataError: no file, a column that is missing or of another type, or no two pairs of different scores.
    """
    pairs = GradedPairs()
    if spec is None:
        return pairs
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        table = documents.read(unit, ("sentence1", "sentence2", "score"), ("lang",), key=key)
        _check_types(table, f"{key}={unit.path}")
        for row in table.to_pylist():
            left, right = clean(row["sentence1"] or ""), clean(row["sentence2"] or "")
            if left and right and row["score"] is not None and math.isfinite(row["score"]):
                pairs.lefts.append(left)
                pairs.rights.append(right)
                pairs.scores.append(float(row["score"]))
                pairs.langs.append(str(row.get("lang") or "und"))
    if len(set(pairs.scores)) < 2:
        raise DataError("no two pairs with text have different scores.", f"{key}={spec}", "Give pairs of several scores.")
    return pairs


def _check_types(table: pa.Table, where: str) -> None:
    """Checks that sentences hold text, and scores numbers; else raises DataError."""
    for name in ("sentence1", "sentence2", "score"):
        kind = table.schema.field(name).type if name in table.column_names else pa.null()
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        if not pa.types.is_null(kind) and not (is_number if name == "score" else is_text):
            expected = "numbers" if name == "score" else "text"
            raise DataError(f"column {name} holds {kind}, not {expected}.", where, f"Write it as a column of {expected}.")
