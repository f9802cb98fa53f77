"""From a row of a file to its pairs: one for each positive, with the scores of a teacher where the row has them."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.text.clean import clean

TEXT, TEXTS, NUMBER, NUMBERS, FLAG = "text", "lists of text", "numbers", "lists of numbers", "true or false"
LABEL = "text or whole numbers"
KINDS = {
    "anchor": TEXT,
    "positive": TEXT,
    "positives": TEXTS,
    "negatives": TEXTS,
    "positive_score": NUMBER,
    "positive_scores": NUMBERS,
    "negative_scores": NUMBERS,
    "task": TEXT,
    "prompt": TEXT,
    "in_batch_negatives": FLAG,
}
"""What each column of a row holds, beside `id` and `lang`."""
_ELSEWHERE = {
    **dict.fromkeys(("query", "type", "negative"), TEXT),
    **dict.fromkeys(("pos", "neg"), TEXTS),
    **dict.fromkeys(("pos_scores", "neg_scores", "scores"), NUMBERS),
}
"""The same in the layouts of other packages, which `layouts` renames."""


class Pair(NamedTuple):
    """A cleaned pair. A missing score is NaN."""

    id: str
    anchor: str
    positive: str
    negatives: list[str]
    lang: str
    positive_score: float
    negative_scores: list[float]
    task: str
    prompt: str
    in_batch: bool


def pairs_of(row: Mapping[str, Any], name: str, where: str) -> Iterator[Pair]:
    """The pairs of a row, one for each positive, with the ids NAME, NAME#2 and so on; none without text on both sides.

    Args:
        row: a value of `KINDS` each, or none; either `positive` or `positives`.
        where: the row's place, for errors.

    Raises:
        DataError: both `positive` and `positives`, or scores that do not match their texts.
    """
    anchor = clean(row.get("anchor") or "")
    positives = _scored(*_positives(row, where), "positive", where)
    negatives = _scored(row.get("negatives") or [], row.get("negative_scores"), "negative", where)
    in_batch = row.get("in_batch_negatives")
    for number, (positive, score) in enumerate(positives if anchor else [], 1):
        yield Pair(
            id=name if number == 1 else f"{name}#{number}",
            anchor=anchor,
            positive=positive,
            negatives=[text for text, _ in negatives],
            lang=str(row.get("lang") or "und"),
            positive_score=score,
            negative_scores=[one for _, one in negatives],
            task=(row.get("task") or "").strip(),
            prompt=row.get("prompt") or "",
            in_batch=True if in_batch is None else bool(in_batch),
        )


def _positives(row: Mapping[str, Any], where: str) -> tuple[list[str | None], list[float | None] | None]:
    """The positives of a row, and their scores; DataError if `positive` and `positives` are mixed."""
    one, many = row.get("positive"), row.get("positives")
    score, scores = row.get("positive_score"), row.get("positive_scores")
    if one is not None and many is not None:
        raise DataError("it has both positive and positives.", where, "Give one text as positive, or all as positives.")
    if (scores if many is None else score) is not None:
        wrong, right = ("positive_score", "positive_scores") if many is not None else ("positive_scores", "positive_score")
        raise DataError(
            f"its {wrong} is for {'one positive' if many is not None else 'a list of positives'}.", where, f"Write {right}."
        )
    return ([one], [score]) if many is None else (many, scores)


def _scored(texts: list[str | None], scores: list[float | None] | None, side: str, where: str) -> list[tuple[str, float]]:
    """Cleaned texts with their scores, without empty texts; DataError if the scores are not one finite number a text."""
    given = [None] * len(texts) if scores is None else scores
    if len(given) != len(texts):
        raise DataError(
            f"it has {len(texts)} {side}s and {len(given)} {side}_scores.", where, "Give a score for each, or null."
        )
    if any(one is not None and math.isinf(one) for one in given):
        raise DataError(f"a {side} score is infinite.", where, "Give a finite number, or null where there is none.")
    numbers = [math.nan if one is None else float(one) for one in given]
    return [(cleaned, one) for text, one in zip(texts, numbers, strict=True) if (cleaned := clean(text or ""))]


def check_types(table: pa.Table, where: str, kinds: Mapping[str, str] = KINDS | _ELSEWHERE) -> None:
    """Checks that each column holds what it should, or nothing; else raises DataError.

    Args:
        kinds: what each column holds; the columns of pairs when not given.
    """
    for name in table.column_names:
        kind, expected = table.schema.field(name).type, kinds.get(re.sub(r"^negative_\d+$", "negative", name))
        is_list = expected in (TEXTS, NUMBERS)
        if expected is None or pa.types.is_null(kind):
            continue
        if is_list and not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise DataError(f"column {name} holds {kind}, not {expected}.", where, f"Write it as {_LISTS[expected]}.")
        kind = kind.value_type if is_list else kind
        if not _holds(kind, expected):
            plain = {TEXTS: TEXT, NUMBERS: NUMBER}.get(expected, expected)
            raise DataError(f"column {name} holds {kind}, not {plain}.", where, f"Write it as {_COLUMNS[expected]}.")


_LISTS = {TEXTS: "lists of strings", NUMBERS: "lists of numbers"}
_COLUMNS = {
    TEXT: "a column of strings",
    LABEL: "a column of strings or integers",
    NUMBER: "a column of numbers",
    FLAG: "a column of booleans",
    **_LISTS,
}


def _holds(kind: pa.DataType, expected: str) -> bool:
    """Whether an Arrow type of single values is the expected one."""
    if pa.types.is_null(kind):
        return True
    if expected in (TEXT, TEXTS):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if expected == LABEL:
        return _holds(kind, TEXT) or bool(pa.types.is_integer(kind))
    if expected == FLAG:
        return bool(pa.types.is_boolean(kind))
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
