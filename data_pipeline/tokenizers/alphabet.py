"""Which characters a vocabulary has pieces for."""

from collections.abc import Iterator, Sequence

import numpy as np

_BLANK = "\u2581"
_LINES = 1 << 14


def count_characters(lines: Sequence[str]) -> dict[str, int]:
    """How often each character stands in the lines, blanks left out."""
    counts = np.zeros(0x110000, np.int64)
    for start in range(0, len(lines), _LINES):
        codes = np.frombuffer("".join(lines[start : start + _LINES]).encode("utf-32-le", "surrogatepass"), np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    found = {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return {char: count for char, count in found.items() if not char.isspace() and char != _BLANK}


def covering_characters(counts: dict[str, int], coverage: float) -> set[str]:
    """The most frequent characters that together make up the share `coverage` of all, as SentencePiece's
    `character_coverage` chooses them; of equally frequent ones those of lower code point."""
    ordered = sorted(counts, key=lambda char: (-counts[char], char))
    reached = np.cumsum([counts[char] for char in ordered])
    needed = coverage * (reached[-1] if len(reached) else 0)
    return set(ordered[: int(np.searchsorted(reached, needed)) + 1])


def blank_out(lines: Sequence[str], rare: set[str]) -> Iterator[str]:
    """The lines with a blank for each character of `rare`, so that no piece reaches over one."""
    table = dict.fromkeys(map(ord, rare), " ")
    for line in lines:
        yield line if rare.isdisjoint(line) else line.translate(table)
