"""Text as the tokenizers shall see it: NFC and no control characters; its layout only where that matters."""

import hashlib
import re
import unicodedata

# Cc without the line break, Cf without the joiners that Indic and Persian spelling needs, surrogates, private use.
_KEPT_FORMAT = {"\u200c", "\u200d"}
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{4,}")


def clean(text: str, layout: bool = False) -> str:
    """NFC text without control characters, and with single blanks and no empty lines unless its layout matters.

    Args:
        layout: keeps indentation, blanks within lines and one or two empty lines in a row, which are part of code, tables and
            paragraphs as decoders are to write them; blanks at the ends of lines go in any case.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.isprintable():
        tab = "\t" if layout else " "
        text = "".join(char if _kept(char) else tab if char == "\t" else " " if char in "\v\f\x85" else "" for char in text)
    if layout:
        lines = "\n".join(line.rstrip() for line in text.split("\n"))
        return _EMPTY_LINES.sub("\n\n\n", lines).strip("\n")
    found = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in found if line)


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in case and blanks: the key for finding duplicates."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def _kept(char: str) -> bool:
    return char == "\n" or char in _KEPT_FORMAT or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")
