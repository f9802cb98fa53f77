"""Texts with a label, for classification and clustering: `text`, `label`, optional `split` (train or test)."""

from dataclasses import dataclass, field

from data_pipeline.errors import DataError
from data_pipeline.pairs import rows
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean

TRAIN, TEST = "train", "test"
_KINDS = {"text": rows.TEXT, "label": rows.LABEL, "split": rows.TEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTexts:
    """Cleaned texts as parallel lists."""

    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    """`train` or `test` of each text; empty if the file has no split."""

    def __len__(self) -> int:
        return len(self.labels)


def load(spec: str, cache: str, *, key: str) -> LabelledTexts:
    """Reads and cleans the texts at `spec`. Skips rows without text or without a label.

    Raises:
        DataError: no file, a column that is missing or of another type, fewer than two labels, or a wrong split.
    """
    found = LabelledTexts()
    for unit in documents.units(documents.resolve(spec, cache, key=key)):
        table = documents.read(unit, ("text", "label"), ("split",), key=key)
        rows.check_types(table, f"{key}={unit.path}", _KINDS)
        for row in table.to_pylist():
            text = clean(row["text"] or "")
            if text and row["label"] is not None:
                found.texts.append(text)
                found.labels.append(str(row["label"]))
                found.splits.append(row.get("split") or "")
    if len(set(found.labels)) < 2:
        raise DataError("there are fewer than two labels.", f"{key}={spec}", "Give texts of several labels.")
    if not any(found.splits):
        found.splits.clear()
    _check_splits(found, f"{key}={spec}")
    return found


def _check_splits(found: LabelledTexts, where: str) -> None:
    """Checks that each text is in one of both splits, each split has texts, and the training texts have several labels."""
    if not found.splits:
        return
    if wrong := set(found.splits) - {TRAIN, TEST}:
        raise DataError(f"split holds {min(wrong)!r}.", where, f"Write {TRAIN} or {TEST} for every text, or no column split.")
    of_training = {label for label, split in zip(found.labels, found.splits, strict=True) if split == TRAIN}
    if len(of_training) < 2 or TEST not in found.splits:
        raise DataError(
            "a classifier needs training texts of two labels, and test texts.",
            where,
            "Change the column split, or leave it out.",
        )
