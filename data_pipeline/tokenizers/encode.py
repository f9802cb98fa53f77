"""Encodes many texts fast by encoding each distinct word once.

Most tokenizers cut a text before every blank, and many also between a word and a punctuation mark, and encode what lies
between two cuts by itself. For these tokenizers the text is cut here, each distinct word is encoded, and the ids of the
texts are looked up: the same ids as `Tokenizer.encode_batch`, for a fraction of its work where words repeat.
"""

import json
import unicodedata
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.tokenizers.ragged import Ragged
from data_pipeline.tokenizers.rules import GPT2, LETTERS, WITH_MARKS, rule_parts

CutRule = Literal["nowhere", "before blanks", "after words"]
_LOCAL_NORMALIZERS = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Precompiled"}
"""They normalise a character independently of its neighbours, except for marks and `_JOINS`."""
_AT_BLANKS = {"WhitespaceSplit", "Metaspace", "Digits", "Punctuation"}
_AFTER_WORDS = {"BertPreTokenizer", "Whitespace", "ByteLevel", "Split"}
_PUBLISHED_PATTERNS = (
    # GPT-4's, as Llama 3 and Qwen 2 have it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    GPT2,
)
LOCAL_PATTERNS = {*_PUBLISHED_PATTERNS, *(pattern.replace(LETTERS, WITH_MARKS) for pattern in _PUBLISHED_PATTERNS)}
"""Patterns in which a blank matches at the beginning of an alternative only."""
_JOINS = r"[\p{C}\p{Z}\x{2581}\x{FFFD}] |[\x{D4E}\x{11000}-\x{11FFF}][^\p{L}\p{M}\p{N}]"
"""A blank after a character that a normaliser may turn into a blank: control characters and other kinds of spaces; and what is
no word after the letters that Unicode prepends to the next character (UAX 29). A text with a match is encoded whole."""
_BLANK, _VISIBLE, _WORD, _MARK = 1, 2, 4, 8


def encode(tokenizer: Tokenizer, texts: pa.StringArray) -> Ragged:
    """The ids of each text, equal to those of `encode_batch`, without special tokens around it."""
    rule = cut_rule(tokenizer)
    if rule == "nowhere":
        return _encode_whole(tokenizer, texts)
    words, counts = _words(texts, _kinds(tokenizer, rule))
    coded = words.dictionary_encode()
    distinct = _encode_whole(tokenizer, coded.dictionary)
    which = coded.indices.to_numpy()
    result = distinct.take(which).merge_runs(counts)
    whole = np.repeat(np.arange(len(texts)), counts)[_has_added_token(tokenizer, distinct)[which]]
    # An added token is matched before the text is cut and may cross a cut.
    joins = "|".join([_JOINS, *(rf"\Q{token.content}\E" for token in tokenizer.get_added_tokens_decoder().values())])
    joining = np.flatnonzero(pc.match_substring_regex(texts, joins).to_numpy(zero_copy_only=False))
    return _replace_rows(result, np.union1d(whole, joining), tokenizer, texts)


def cut_rule(tokenizer: Tokenizer) -> CutRule:
    """Where any text can be cut so that its ids are the concatenated ids of the pieces."""
    spec = json.loads(tokenizer.to_str())
    pre_tokenizers = list(rule_parts(spec["pre_tokenizer"], "pretokenizers"))
    independent = (
        not any(char.isspace() for token in spec["added_tokens"] for char in token["content"])
        and not spec["model"].get("dropout")
        and all(part["type"] in _LOCAL_NORMALIZERS for part in rule_parts(spec["normalizer"], "normalizers"))
        and all(_is_local(part) for part in pre_tokenizers)
    )
    # ByteLevel without its pattern does not cut; one that adds a blank would add one to each piece.
    cutting = [part for part in pre_tokenizers if part.get("use_regex", True)]
    if not independent or not cutting:
        return "nowhere"
    can_cut_after_words = (
        any(part["type"] in _AFTER_WORDS for part in cutting)
        and not any(part["type"] == "Metaspace" or part.get("add_prefix_space") for part in pre_tokenizers)
        and not any(token["normalized"] and spec["normalizer"] for token in spec["added_tokens"])
    )
    return "after words" if can_cut_after_words else "before blanks"


def _is_local(part: dict[str, Any]) -> bool:
    if part["type"] == "Metaspace":
        return bool(part["split"])
    if part["type"] == "Split":
        return part["behavior"] == "Isolated" and not part["invert"] and part["pattern"].get("Regex") in LOCAL_PATTERNS
    return part["type"] in _AT_BLANKS | _AFTER_WORDS


def _kinds(tokenizer: Tokenizer, rule: CutRule) -> Callable[[str], int]:
    """A function that gives the flags of a character for cutting, after the tokenizer's own normaliser."""
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str

    def kind(char: str) -> int:
        """The bit flags of a character: blank or visible, and whether its normalised form ends a word or begins as a mark."""
        flags = _BLANK if char == " " else _VISIBLE if char > " " and char != "\x7f" else 0
        normal = normalize(char) if rule == "after words" else ""
        if normal:
            first, last = unicodedata.category(normal[0]), unicodedata.category(normal[-1])
            flags |= _WORD if last[0] in "LN" else 0
            ascii_mark = normal[0].isascii() and normal[0].isprintable() and not normal[0].isalnum() and normal[0] != "_"
            flags |= _MARK if ascii_mark or normal[0].isspace() or (first[0] == "P" and first != "Pc") else 0
        return flags

    return kind


def _words(texts: pa.StringArray, kind: Callable[[str], int]) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """The words of all texts and their number in each text. The words share the texts' memory, without a copy."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    utf8 = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    codes = np.frombuffer(utf8.tobytes().decode().encode("utf-32-le"), np.uint32)
    flags = np.zeros(0x110000, np.uint8)
    flags[codes] = 1
    for code in np.flatnonzero(flags).tolist():
        flags[code] = kind(chr(code))
    kinds = flags[codes]
    current, previous = kinds[1:], kinds[:-1]
    cut = ((current & _BLANK) > 0) & ((previous & _VISIBLE) > 0) | ((current & _MARK) > 0) & ((previous & _WORD) > 0)
    begins = np.zeros(len(utf8), bool)
    begins[np.flatnonzero((utf8 & 0xC0) != 0x80)[1:][cut]] = True
    begins[offsets[:-1][np.diff(offsets) > 0] - offsets[0]] = True
    starts = np.flatnonzero(begins) + offsets[0]
    bounds = pa.py_buffer(np.append(starts, offsets[-1]))
    words = pa.LargeStringArray.from_buffers(len(starts), bounds, texts.buffers()[2])
    return words, np.diff(np.searchsorted(starts, offsets))


def _encode_whole(tokenizer: Tokenizer, texts: pa.Array) -> Ragged:
    encodings = tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
    return Ragged.of([encoding.ids for encoding in encodings])


def _has_added_token(tokenizer: Tokenizer, lists: Ragged) -> NDArray[np.bool_]:
    """Which lists have an added token that strips blanks or must stand alone, however the text spells it."""
    added = [
        number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.lstrip or token.rstrip or token.single_word
    ]
    is_added = np.isin(lists.flat, np.array(added, np.uint32))
    return np.bincount(np.repeat(np.arange(len(lists)), lists.sizes)[is_added], minlength=len(lists)) > 0


def _replace_rows(result: Ragged, rows: NDArray[np.int64], tokenizer: Tokenizer, texts: pa.StringArray) -> Ragged:
    """`result` with the texts at `rows` encoded whole."""
    if not len(rows):
        return result
    whole = _encode_whole(tokenizer, texts.take(pa.array(rows)))
    order = np.arange(len(result))
    order[rows] = len(result) + np.arange(len(rows))
    both = Ragged(flat=np.concatenate([result.flat, whole.flat]), sizes=np.concatenate([result.sizes, whole.sizes]))
    return both.take(order)
