"""Pairs of sentences or words with a gold score of their similarity.

The columns are `sentence1`, `sentence2` and `score`, or, as in WordSim-353 and SimLex-999, `word1`, `word2` and `score`; and
optional `lang`.
"""

import math
from dataclasses import dataclass, field

from data_pipeline.errors import DataError
from data_pipeline.pairs import rows
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean

_SIDES = (("sentence1", "sentence2"), ("word1", "word2"))


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
    """Reads and cleans the pairs at `spec`; empty if `spec` is None. Skips pairs without text on a side or a finite score.

    Raises:
        DataError: no file, a column that is missing or of another type, or no two pairs of different scores.
    """
    pairs = GradedPairs()
    if spec is None:
        return pairs
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        names = documents.columns(unit, key=key)
        sides = next((both for both in _SIDES if set(both) <= set(names)), _SIDES[0])
        table = documents.read(unit, (*sides, "score"), ("lang",), key=key)
        rows.check_types(table, f"{key}={unit.path}", dict.fromkeys(sides, rows.TEXT) | {"score": rows.NUMBER})
        for row in table.to_pylist():
            left, right = (clean(row[name] or "") for name in sides)
            if left and right and row["score"] is not None and math.isfinite(row["score"]):
                pairs.lefts.append(left)
                pairs.rights.append(right)
                pairs.scores.append(float(row["score"]))
                pairs.langs.append(str(row.get("lang") or "und"))
    if len(set(pairs.scores)) < 2:
        raise DataError("no two pairs with text have different scores.", f"{key}={spec}", "Give pairs of several scores.")
    return pairs
