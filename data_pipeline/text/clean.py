"""Text as the tokenizers shall see it: NFC, no control characters, single spaces, no empty lines."""

import hashlib
import re
import unicodedata

# Cc without the line break, Cf without the joiners that Indic and Persian spelling needs, surrogates, private use.
_KEPT_FORMAT = {"\u200c", "\u200d"}
_BLANKS = re.compile(r"[^\S\n]+")


def clean(text: str) -> str:
    """NFC text without control characters, runs of blanks made one, lines stripped and empty lines dropped."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.isprintable():
        text = "".join(char if _kept(char) else " " if char in "\t\v\f\x85" else "" for char in text)
    lines = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in case and blanks: the key for finding duplicates."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def _kept(char: str) -> bool:
    return char == "\n" or char in _KEPT_FORMAT or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")
