"""Chooses the characters that get pieces of their own in a vocabulary."""

from collections.abc import Iterator, Sequence

import numpy as np

_BLANK = "\u2581"
_CHUNK_LINES = 1 << 14


def count_characters(lines: Sequence[str]) -> dict[str, int]:
    """Counts each character of the lines, except blanks."""
    counts = np.zeros(0x110000, np.int64)
    for start in range(0, len(lines), _CHUNK_LINES):
        codes = np.frombuffer("".join(lines[start : start + _CHUNK_LINES]).encode("utf-32-le", "surrogatepass"), np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    by_char = {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return {char: count for char, count in by_char.items() if not char.isspace() and char != _BLANK}


def covering_characters(counts: dict[str, int], coverage: float) -> set[str]:
    """The most frequent characters that together make up the share `coverage` of the text.

    This is SentencePiece's `character_coverage`. Ties go to the lower code point.
    """
    ordered = sorted(counts, key=lambda char: (-counts[char], char))
    covered = np.cumsum([counts[char] for char in ordered])
    needed = coverage * (covered[-1] if len(covered) else 0)
    return set(ordered[: int(np.searchsorted(covered, needed)) + 1])


def blank_out(lines: Sequence[str], rare: set[str]) -> Iterator[str]:
    """Replaces the characters of `rare` by blanks, so that no piece contains one."""
    table = dict.fromkeys(map(ord, rare), " ")
    for line in lines:
        yield line if rare.isdisjoint(line) else line.translate(table)
