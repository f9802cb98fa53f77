"""The one form in which tokens of different tokenizers are compared: role, word start and bytes.

Read from `tokenizer.json` (never from `decode`, which strips blanks and cannot show half a character), by what the
file says of itself, never by class name.
"""

import json
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ModelError

Family = Literal["byte_level", "sentencepiece", "wordpiece"]
ROLES = ("pad", "unk", "mask", "cls", "sep", "bos", "eos")
_ALIASES = {"cls": ("cls", "bos"), "bos": ("bos", "cls"), "sep": ("sep", "eos"), "eos": ("eos", "sep")}
_BLANK = "\u2581"


@dataclass(frozen=True, slots=True)
class Token:
    """A token apart from its tokenizer. `role` is set for special tokens only, e.g. `mask` or `special:<|im_end|>`."""

    role: str | None
    word_start: bool
    payload: bytes

    def key(self) -> bytes:
        """Bytes that name the token in any tokenizer, e.g. as a key for random numbers."""
        return b"\0".join([(self.role or "").encode(), b"1" if self.word_start else b"0", self.payload])


def canonical_tokens(tokenizer: PreTrainedTokenizerFast) -> list[Token | None]:
    """The canonical form of every id from 0 to the highest; None where the tokenizer has a gap.

    Raises:
        ModelError: the tokenizer's family is not known.
    """
    family = family_of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    special = _special_roles(tokenizer)
    tokens: list[Token | None] = [None] * (max(vocabulary.values()) + 1)
    for text, number in vocabulary.items():
        if number in special:
            tokens[number] = Token(special[number], False, b"")
        else:
            tokens[number] = _parse(text, family)
    return tokens


def family_of(tokenizer: PreTrainedTokenizerFast) -> Family:
    """Which convention the pieces follow, as the tokenizer's own file says."""
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
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return {role: int(number) for role, number in found.items() if number is not None}


def same_role(tokenizer: PreTrainedTokenizerFast, number: int, other: PreTrainedTokenizerFast) -> int | None:
    """The id in `other` that plays the role which `number` plays in `tokenizer`; cls and bos, sep and eos pass for one."""
    theirs = role_ids(other)
    for role, own in role_ids(tokenizer).items():
        if own == number:
            for alias in _ALIASES.get(role, (role,)):
                if alias in theirs:
                    return theirs[alias]
    found = other.get_vocab().get(str(tokenizer.convert_ids_to_tokens(number)))
    return found if found in set(other.all_special_ids) else None


def _special_roles(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    roles = {number: role for role, number in reversed(role_ids(tokenizer).items())}
    for number in tokenizer.all_special_ids:
        roles.setdefault(number, f"special:{tokenizer.convert_ids_to_tokens(number)}")
    return roles


def _parse(text: str, family: Family) -> Token:
    if family == "wordpiece":
        return Token(None, False, text[2:].encode()) if text.startswith("##") else Token(None, True, text.encode())
    if family == "byte_level":
        raw = bytes(_BYTE_OF[char] for char in text) if all(char in _BYTE_OF for char in text) else text.encode()
        return Token(None, raw.startswith(b" "), raw.removeprefix(b" "))
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return Token(None, False, bytes([int(text[3:5], 16)]))
    start = text.startswith(_BLANK)
    return Token(None, start, text.removeprefix(_BLANK).replace(_BLANK, " ").encode())


def _byte_table() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_table()
