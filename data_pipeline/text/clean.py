"""Cleans text for the tokenizers: NFC, no control characters, and layout only where it matters."""

import hashlib
import re
import unicodedata

_JOINERS = {"\u200c", "\u200d"}
"""Format characters that Indic and Persian spelling needs."""
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{4,}")


def clean(text: str, layout: bool = False) -> str:
    """NFC text without control characters; without `layout` also with single blanks and no empty lines.

    Args:
        layout: keeps indentation, blanks within lines and one or two empty lines in a row: decoders learn code, tables and
            paragraphs from them. Trailing blanks go in any case.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.isprintable():
        tab = "\t" if layout else " "
        text = "".join(char if _stays(char) else tab if char == "\t" else " " if char in "\v\f\x85" else "" for char in text)
    if layout:
        stripped = "\n".join(line.rstrip() for line in text.split("\n"))
        return _EMPTY_LINES.sub("\n\n\n", stripped).strip("\n")
    lines = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def digest(text: str) -> bytes:
    """A hash of 16 bytes that ignores case and blanks: the key for finding duplicates."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def _stays(char: str) -> bool:
    """Whether it is no control or format character, surrogate, private or unassigned code point; line breaks stay."""
    return char == "\n" or char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")
