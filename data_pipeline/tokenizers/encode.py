"""Token ids of many texts, each distinct word encoded once.

Most tokenizers cut a text before a blank, whatever stands on either side, and many also where a word ends before a
punctuation mark; what lies between two cuts is looked at by itself. For them a text is cut so here, each word that is not
like another is encoded, and the ids are put together again by look-up: the same ids as `Tokenizer.encode_batch`, for a
fraction of its work wherever words come back.
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

CutRule = Literal["nowhere", "before blanks", "behind words"]
_LOCAL_NORMALIZERS = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Precompiled"}
"""What they do to a character does not depend on what stands beside it, but for marks and for what `_JOINS_A_BLANK` says."""
_AT_BLANKS = {"WhitespaceSplit", "Metaspace", "Digits", "Punctuation"}
_BEHIND_WORDS = {"BertPreTokenizer", "Whitespace", "ByteLevel", "Split"}
_AS_PUBLISHED = (
    # GPT-4's, as Llama 3 and Qwen 2 have it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    GPT2,
)
_LOCAL_PATTERNS = {*_AS_PUBLISHED, *(pattern.replace(LETTERS, WITH_MARKS) for pattern in _AS_PUBLISHED)}
"""In these only the beginning of an alternative takes a blank."""
_JOINS_A_BLANK = r"[\p{C}\p{Z}\x{2581}\x{FFFD}\x{D4E}\x{11000}-\x{11FFF}] "
"""A text in which a blank follows on a character that a normaliser may make a blank or join with what follows: it is encoded
whole. Control characters and spaces of other kinds, and the letters that Unicode prepends to the next (UAX 29)."""
_BLANK, _VISIBLE, _WORD, _MARK = 1, 2, 4, 8


def encode(tokenizer: Tokenizer, texts: pa.StringArray) -> Ragged:
    """The ids of each text, without special tokens around it: those that `encode_batch` gives."""
    where = cut_rule(tokenizer)
    if where == "nowhere":
        return _plain(tokenizer, texts)
    words, counts = _words(texts, _kinds(tokenizer, where))
    coded = words.dictionary_encode()
    distinct = _plain(tokenizer, coded.dictionary)
    which = coded.indices.to_numpy()
    result = distinct.take(which).merge_runs(counts)
    whole = np.repeat(np.arange(len(texts)), counts)[_holds_added(tokenizer, distinct)[which]]
    # A token that is looked for before the text is cut may lie over a cut.
    joins = "|".join([_JOINS_A_BLANK, *(rf"\Q{token.content}\E" for token in tokenizer.get_added_tokens_decoder().values())])
    odd = np.flatnonzero(pc.match_substring_regex(texts, joins).to_numpy(zero_copy_only=False))
    return _replaced(result, np.union1d(whole, odd), tokenizer, texts)


def cut_rule(tokenizer: Tokenizer) -> CutRule:
    """Where every text may be cut so that its ids are those of the pieces behind one another."""
    spec = json.loads(tokenizer.to_str())
    split = list(rule_parts(spec["pre_tokenizer"], "pretokenizers"))
    independent = (
        not any(char.isspace() for token in spec["added_tokens"] for char in token["content"])
        and not spec["model"].get("dropout")
        and all(part["type"] in _LOCAL_NORMALIZERS for part in rule_parts(spec["normalizer"], "normalizers"))
        and all(_is_local(part) for part in split)
    )
    # ByteLevel without its pattern cuts nothing; where it adds a blank, it would add one to each piece.
    cutting = [part for part in split if part.get("use_regex", True)]
    if not independent or not cutting:
        return "nowhere"
    fine = (
        any(part["type"] in _BEHIND_WORDS for part in cutting)
        and not any(part["type"] == "Metaspace" or part.get("add_prefix_space") for part in split)
        and not any(token["normalized"] and spec["normalizer"] for token in spec["added_tokens"])
    )
    return "behind words" if fine else "before blanks"


def _is_local(part: dict[str, Any]) -> bool:
    if part["type"] == "Metaspace":
        return bool(part["split"])
    if part["type"] == "Split":
        return part["behavior"] == "Isolated" and not part["invert"] and part["pattern"].get("Regex") in _LOCAL_PATTERNS
    return part["type"] in _AT_BLANKS | _BEHIND_WORDS


def _kinds(tokenizer: Tokenizer, where: CutRule) -> Callable[[str], int]:
    """What a character is for the cuts, after the tokenizer's own normaliser."""
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str

    def kind(char: str) -> int:
        flags = _BLANK if char == " " else _VISIBLE if char > " " and char != "\x7f" else 0
        normal = normalize(char) if where == "behind words" else ""
        if normal:
            first, last = unicodedata.category(normal[0]), unicodedata.category(normal[-1])
            flags |= _WORD if last[0] in "LN" else 0
            ascii_mark = normal[0].isascii() and normal[0].isprintable() and not normal[0].isalnum() and normal[0] != "_"
            flags |= _MARK if ascii_mark or normal[0].isspace() or (first[0] == "P" and first != "Pc") else 0
        return flags

    return kind


def _words(texts: pa.StringArray, kind: Callable[[str], int]) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """The words of all texts and their number in each text. They lie where the texts lie: nothing is copied."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    utf8 = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    codes = np.frombuffer(utf8.tobytes().decode().encode("utf-32-le"), np.uint32)
    flags = np.zeros(0x110000, np.uint8)
    flags[codes] = 1
    for code in np.flatnonzero(flags).tolist():
        flags[code] = kind(chr(code))
    kinds = flags[codes]
    here, before = kinds[1:], kinds[:-1]
    cut = ((here & _BLANK) > 0) & ((before & _VISIBLE) > 0) | ((here & _MARK) > 0) & ((before & _WORD) > 0)
    begins = np.zeros(len(utf8), bool)
    begins[np.flatnonzero((utf8 & 0xC0) != 0x80)[1:][cut]] = True
    begins[offsets[:-1][np.diff(offsets) > 0] - offsets[0]] = True
    starts = np.flatnonzero(begins) + offsets[0]
    bounds = pa.py_buffer(np.append(starts, offsets[-1]))
    words = pa.LargeStringArray.from_buffers(len(starts), bounds, texts.buffers()[2])
    return words, np.diff(np.searchsorted(starts, offsets))


def _plain(tokenizer: Tokenizer, texts: pa.Array) -> Ragged:
    encoded = tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
    return Ragged.of([one.ids for one in encoded])


def _holds_added(tokenizer: Tokenizer, lists: Ragged) -> NDArray[np.bool_]:
    """Which lists hold a token that takes blanks or needs an edge beside it, though the text may spell it in another way."""
    added = [
        number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.lstrip or token.rstrip or token.single_word
    ]
    held = np.isin(lists.flat, np.array(added, np.uint32))
    return np.bincount(np.repeat(np.arange(len(lists)), lists.sizes)[held], minlength=len(lists)) > 0


def _replaced(result: Ragged, rows: NDArray[np.int64], tokenizer: Tokenizer, texts: pa.StringArray) -> Ragged:
    """`result` with those rows encoded whole."""
    if not len(rows):
        return result
    anew = _plain(tokenizer, texts.take(pa.array(rows)))
    order = np.arange(len(result))
    order[rows] = len(result) + np.arange(len(rows))
    both = Ragged(flat=np.concatenate([result.flat, anew.flat]), sizes=np.concatenate([result.sizes, anew.sizes]))
    return both.take(order)
