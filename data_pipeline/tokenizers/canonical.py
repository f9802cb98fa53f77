"""The canonical form of a token, in which different tokenizers are compared: role, word start and bytes.

Read from the content of `tokenizer.json`. Not from `decode`, which strips blanks and cannot show half a character, and not
from the class name.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from data_pipeline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Family = Literal["byte_level", "sentencepiece", "wordpiece"]
ROLES = ("pad", "unk", "mask", "cls", "sep", "bos", "eos")
_ALIASES = {"cls": ("cls", "bos"), "bos": ("bos", "cls"), "sep": ("sep", "eos"), "eos": ("eos", "sep")}
_BLANK = "\u2581"


@dataclass(frozen=True, slots=True)
class Token:
    """A token independent of its tokenizer. Only special tokens have a `role`, e.g. `mask` or `special:<|im_end|>`."""

    role: str | None
    is_word_start: bool
    payload: bytes
    is_byte: bool = False
    """Whether it is one raw byte (`<0xAB>`), which never equals the token of the text that the byte spells."""
    fits_anywhere: bool = False
    """Whether it is written the same at the start of a word and within: punctuation and Han characters in WordPiece."""

    def key(self) -> bytes:
        """Bytes that identify the token in any tokenizer, e.g. as a key for random numbers."""
        parts = [(self.role or "").encode(), b"1" if self.is_word_start else b"0", self.payload]
        return b"\0".join([*parts, b"byte"] if self.is_byte else parts)

    def text(self) -> str | None:
        """The characters, without the mark of a word start; None for special tokens, raw bytes and halves of a character."""
        if self.role is not None or self.is_byte:
            return None
        try:
            return self.payload.decode()
        except UnicodeDecodeError:
            return None


def canonical_tokens(tokenizer: PreTrainedTokenizerFast) -> list[Token | None]:
    """The canonical form of every id from 0 to the highest; None for unused ids.

    Raises:
        ModelError: the tokenizer's family is unknown.
    """
    family = family_of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    special = special_roles(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    tokens: list[Token | None] = [None] * (max(vocabulary.values()) + 1)
    for text, number in vocabulary.items():
        if number in special:
            tokens[number] = Token(special[number], False, b"")
        elif number in added and family != "sentencepiece":  # matched in the raw text, in every family
            tokens[number] = Token(None, text.startswith(" "), text.removeprefix(" ").encode())
        else:
            tokens[number] = parse_entry(text, family)
    return tokens


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the meaning of all ids: tokenizers with equal hashes can use each other's embeddings."""
    facts = [sorted(tokenizer.get_vocab().items()), sorted(role_ids(tokenizer).items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def family_of(tokenizer: PreTrainedTokenizerFast) -> Family:
    """The convention of the pieces, read from the tokenizer's file."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder"), spec.get("normalizer")], ensure_ascii=False)
    if spec["model"]["type"] == "WordPiece":
        return "wordpiece"
    if '"ByteLevel"' in parts:
        return "byte_level"
    if '"Metaspace"' in parts or _BLANK in parts:
        return "sentencepiece"
    raise ModelError(
        f"the tokenizer's kind is not known (model {spec['model']['type']}).",
        tokenizer.name_or_path,
        "Scion reads WordPiece, byte-level BPE and SentencePiece tokenizers.",
    )


def role_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The id of each special role that the tokenizer has, e.g. `{"pad": 0, "cls": 101}`."""
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return {role: int(number) for role, number in ids.items() if number is not None}


def matching_roles(tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> dict[int, int]:
    """Maps special ids of `tokenizer` to the ids of the same role in `other`, where there is one.

    cls and bos match each other, and so do sep and eos; other special tokens match by their text.
    """
    other_ids = role_ids(other)
    matches = {}
    for role, number in reversed(role_ids(tokenizer).items()):
        match = next((other_ids[alias] for alias in _ALIASES.get(role, (role,)) if alias in other_ids), None)
        if match is not None:
            matches[number] = match
    names = {name: number for number, name in special_roles(other).items()}
    for number, name in special_roles(tokenizer).items():
        if number not in matches and name.startswith("special:") and name in names:
            matches[number] = names[name]
    return matches


def special_roles(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """The role of every special id: a name of `ROLES`, or `special:` and its text."""
    roles = {number: role for role, number in reversed(role_ids(tokenizer).items())}
    added = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    for number in [*tokenizer.all_special_ids, *added]:
        roles.setdefault(number, f"special:{tokenizer.convert_ids_to_tokens(number)}")
    return roles


def script(token: Token | None) -> str:
    """The script of most letters, e.g. `GREEK`; `COMMON` for text without letters; empty for tokens without text."""
    text = None if token is None else token.text()
    if not text:
        return ""
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in text if unicodedata.category(char)[0] in "LM")
    return scripts.most_common(1)[0][0] if scripts else "COMMON"


def parse_entry(text: str, family: Family) -> Token:
    """What a vocabulary entry stands for: its bytes, whether it begins a word, and whether it is a byte-fallback piece."""
    if family == "wordpiece":
        if text.startswith("##") and len(text) > 2:
            return Token(None, False, text[2:].encode())
        return Token(None, True, text.encode(), fits_anywhere=len(text) == 1 and _stands_alone(text))
    if family == "byte_level":
        raw = bytes(_BYTE_OF[char] for char in text) if all(char in _BYTE_OF for char in text) else text.encode()
        return Token(None, raw.startswith(b" "), raw.removeprefix(b" "))
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return Token(None, False, bytes([int(text[3:5], 16)]), is_byte=True)
    start = text.startswith(_BLANK)
    return Token(None, start, text.removeprefix(_BLANK).replace(_BLANK, " ").encode())


def _stands_alone(char: str) -> bool:
    """Whether BERT's pre-tokenizer always makes a word of the character."""
    return unicodedata.category(char)[0] in "PS" or "CJK" in unicodedata.name(char, "")


def _byte_table() -> dict[str, int]:
    """The byte of each of GPT-2's printable stand-ins (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_table()
