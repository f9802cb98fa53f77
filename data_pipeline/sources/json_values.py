"""Values of JSON lines by column: texts, numbers, flags and lists of them."""

import json
from typing import Any

import pyarrow as pa

_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
_TYPES = {
    **dict.fromkeys(("negatives", "positives", "pos", "neg"), _TEXTS),
    **dict.fromkeys(("score", "positive_score"), pa.float64()),
    **dict.fromkeys(("positive_scores", "negative_scores", "pos_scores", "neg_scores", "scores"), _NUMBERS),
    "in_batch_negatives": pa.bool_(),
}
"""Of the columns that are not text."""
_EXPECTED = {
    pa.string(): "a text",
    _TEXTS: "a list of texts",
    pa.float64(): "a number",
    _NUMBERS: "a list of numbers",
    pa.bool_(): "true or false",
}
_MOST_SHOWN = 60
"""Characters of a wrong value in an error."""
_LABELS = ("id", "lang", "label")
"""Columns of text that may also hold numbers."""


def arrow_type(name: str) -> pa.DataType:
    """The type of a column, text unless its name says otherwise."""
    return _TYPES.get(name, pa.string())


def parse(name: str, value: Any, kind: pa.DataType | None = None) -> Any:
    """The value as its column stores it; null stays null, also within a list of numbers.

    Args:
        kind: the type of the column, if not that of its name.

    Raises:
        ValueError: it has another type; says which was expected.
    """
    if value is None:
        return None
    kind = arrow_type(name) if kind is None else kind
    if pa.types.is_list(kind):
        if isinstance(value, list):
            items = [_scalar(kind.value_type, item) for item in value]
            if all(item is not None or (one is None and kind == _NUMBERS) for item, one in zip(items, value, strict=True)):
                return items
    elif name in _LABELS and isinstance(value, int | float):
        return str(value)
    elif (found := _scalar(kind, value)) is not None:
        return found
    shown = json.dumps(value, ensure_ascii=False)
    raise ValueError(f"{shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + '…'}, not {_EXPECTED[kind]}")


def _scalar(kind: pa.DataType, value: Any) -> Any:
    """A text, number or flag; None for a value of another type."""
    if kind == pa.bool_():
        return value if isinstance(value, bool) else None
    if kind == pa.float64():
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return repair_surrogates(value) if isinstance(value, str) else None


def repair_surrogates(text: str) -> str:
    """Replaces half surrogate pairs by U+FFFD. They have no UTF-8; programs that cut texts by length leave them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
