"""Finds normalisers and pre-tokenizers that damage words of other scripts, and replaces their rules by harmless ones.

BERT's and ALBERT's uncased models drop accents, which is harmless in English and changes words of Japanese, Hindi, Greek or
Turkish. The patterns of GPT-2, Llama 3 and Qwen define a word as a run of letters (`\\p{L}+`). A vowel sign is a mark
(`\\p{M}`), not a letter, so they cut every Hindi, Tamil or Bengali word there, and no vocabulary can join the parts.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import regex
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from data_pipeline.text.words import words

LETTERS = r"\p{L}+"
WITH_MARKS = r"\p{L}[\p{L}\p{M}]*(?:[\x{200C}\x{200D}][\p{L}\p{M}]+)*"
"""A letter, then letters and marks, with the joiners of Indic and Persian spelling between them."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern inside `ByteLevel`."""
MAX_DAMAGED_SHARE = 1e-3
"""A rule that cuts a larger share of words at marks, or drops their accents, is replaced or warned about."""
_COMPOSED = {"NFKD": "NFKC", "NFD": "NFC"}
MARK = regex.compile(r"\p{L}[\p{M}\u200c\u200d]")


def rule_parts(rule: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """The normalisers (`inner="normalizers"`) or pre-tokenizers (`"pretokenizers"`) of a rule, sequences taken apart."""
    if rule is not None and rule["type"] == "Sequence":
        yield from chain.from_iterable(rule_parts(part, inner) for part in rule[inner])
    elif rule is not None:
        yield rule


def with_accents(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The normaliser without the parts that drop accents and vowel signs, and without the decomposition before them."""
    parts = list(rule_parts(normalizer, "normalizers"))
    if any(part["type"] == "BertNormalizer" for part in parts):
        return _sequence([{**p, "strip_accents": False} if p["type"] == "BertNormalizer" else p for p in parts], "normalizers")
    if not any(part["type"] == "StripAccents" for part in parts):
        return normalizer
    others = [{**part, "type": _COMPOSED.get(part["type"], part["type"])} for part in parts if part["type"] != "StripAccents"]
    return _sequence(others, "normalizers")


def with_marks(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The pre-tokenizer with patterns that keep a letter and its marks together."""
    fixed: list[dict[str, Any]] = []
    for part in rule_parts(pre_tokenizer, "pretokenizers"):
        # Not with `add_prefix_space`, which would put a blank before every part that a Split makes.
        if part["type"] == "ByteLevel" and part.get("use_regex", True) and not part["add_prefix_space"]:
            fixed.append(_split(GPT2.replace(LETTERS, WITH_MARKS)))
            fixed.append({**part, "use_regex": False})
        elif part["type"] == "Split" and "Regex" in part["pattern"]:
            fixed.append({**part, "pattern": {"Regex": part["pattern"]["Regex"].replace(LETTERS, WITH_MARKS)}})
        else:
            fixed.append(part)
    return _sequence(fixed, "pretokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class WordCuts:
    """The words of a text that a pre-tokenizer cuts."""

    share: float
    """Share of the words that are cut at a mark or a joiner."""
    pieces: float
    """Average number of pieces of such a word; a lower bound for any vocabulary."""
    example: str


def word_cuts(pre_tokenizer: PreTokenizer | None, texts: Iterable[str]) -> WordCuts:
    """Counts the words with vowel signs or other marks that the pre-tokenizer cuts."""
    if pre_tokenizer is None:
        return WordCuts(share=0.0, pieces=0.0, example="")
    counts = Counter(chain.from_iterable(map(words, texts)))
    total, cut, pieces, example = max(1, counts.total()), 0, 0, ""
    for word, count in counts.items():
        if MARK.search(word) and len(parts := pre_tokenizer.pre_tokenize_str(word)) > 1:
            cut, pieces = cut + count, pieces + count * len(parts)
            example = max(example, word, key=lambda text: (counts[text] if text else 0, text))
    return WordCuts(share=cut / total, pieces=pieces / max(1, cut), example=example)


def dropped_accents(normalizer: Normalizer | None, texts: Iterable[str]) -> tuple[float, str]:
    """The share of words whose accents or vowel signs a normaliser drops, and the most frequent of these words."""
    if normalizer is None:
        return 0.0, ""
    counts = Counter(chain.from_iterable(map(words, texts)))
    lost = [word for word in counts if _marks(word) > _marks(normalizer.normalize_str(word))]
    share = sum(counts[word] for word in lost) / max(1, counts.total())
    return share, max(lost, key=lambda word: (counts[word], word), default="")


def dropped_accents_warning(normalizer: Normalizer | None, texts: Iterable[str]) -> str | None:
    """A warning if a normaliser drops accents of more than one word in a thousand."""
    share, word = dropped_accents(normalizer, texts)
    if normalizer is None or share <= MAX_DAMAGED_SHARE:
        return None
    becomes = normalizer.normalize_str(word)
    return f"the tokenizer drops accents or vowel signs of {share:.1%} of the words ({word} becomes {becomes})"


def _marks(text: str) -> int:
    return len(regex.findall(r"\p{M}", unicodedata.normalize("NFD", text)))


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Pieces per word of running text."""
    counts = Counter(chain.from_iterable(map(words, texts)))
    encodings = tokenizer.encode_batch_fast([" " + word for word in counts], add_special_tokens=False)
    pieces = sum(len(encoding.ids) * count for encoding, count in zip(encodings, counts.values(), strict=True))
    return pieces / max(1, counts.total())


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(parts: list[dict[str, Any]], inner: str) -> dict[str, Any]:
    return parts[0] if len(parts) == 1 else {"type": "Sequence", inner: parts}
