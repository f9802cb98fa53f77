"""What a source's normaliser and pre-tokenizer do to other scripts than its own, and rules that do them no harm.

BERT's and ALBERT's uncased models drop accents, which is harmless in English and makes other words of Japanese, Hindi, Greek
or Turkish ones. The patterns of GPT-2, Llama 3 and Qwen take a run of letters (`\\p{L}+`) for a word: a vowel sign is a mark
(`\\p{M}`) and no letter, so that every Hindi, Tamil or Bengali word is cut there, and no vocabulary can join the parts.
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
"""A letter, then letters and marks; the joiners that Indic and Persian spelling needs between them."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern inside `ByteLevel`."""
MAX_DAMAGED_SHARE = 1e-3
"""Share of words, cut at marks or without their accents, from which on a rule is replaced, or warned of."""
_COMPOSED = {"NFKD": "NFKC", "NFD": "NFC"}
MARK = regex.compile(r"\p{L}[\p{M}\u200c\u200d]")


def rule_parts(rule: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """The normalisers (`inner="normalizers"`) or pre-tokenizers (`"pretokenizers"`) of a rule, sequences taken apart."""
    if rule is not None and rule["type"] == "Sequence":
        yield from chain.from_iterable(rule_parts(one, inner) for one in rule[inner])
    elif rule is not None:
        yield rule


def with_accents(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The normaliser without what drops accents and vowel signs, and without the decomposition that prepares it."""
    found = list(rule_parts(normalizer, "normalizers"))
    if any(part["type"] == "BertNormalizer" for part in found):
        return _joined([{**p, "strip_accents": False} if p["type"] == "BertNormalizer" else p for p in found], "normalizers")
    if not any(part["type"] == "StripAccents" for part in found):
        return normalizer
    kept = [{**part, "type": _COMPOSED.get(part["type"], part["type"])} for part in found if part["type"] != "StripAccents"]
    return _joined(kept, "normalizers")


def with_marks(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The pre-tokenizer with patterns in which a letter takes its marks along."""
    fixed: list[dict[str, Any]] = []
    for part in rule_parts(pre_tokenizer, "pretokenizers"):
        # `add_prefix_space` would put a blank before every part that a Split has made, so that is left as it is.
        if part["type"] == "ByteLevel" and part.get("use_regex", True) and not part["add_prefix_space"]:
            fixed.append(_split(GPT2.replace(LETTERS, WITH_MARKS)))
            fixed.append({**part, "use_regex": False})
        elif part["type"] == "Split" and "Regex" in part["pattern"]:
            fixed.append({**part, "pattern": {"Regex": part["pattern"]["Regex"].replace(LETTERS, WITH_MARKS)}})
        else:
            fixed.append(part)
    return _joined(fixed, "pretokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class WordCuts:
    """How a pre-tokenizer cuts the words of a text."""

    share: float
    """Share of the words that are cut at a mark or a joiner."""
    pieces: float
    """Pieces that such a word has at least, however good the vocabulary is."""
    example: str


def word_cuts(pre_tokenizer: PreTokenizer | None, texts: Iterable[str]) -> WordCuts:
    """How often words with vowel signs or other marks are cut."""
    if pre_tokenizer is None:
        return WordCuts(share=0.0, pieces=0.0, example="")
    counts = Counter(chain.from_iterable(map(words, texts)))
    total, cut, pieces, example = max(1, counts.total()), 0, 0, ""
    for word, count in counts.items():
        if MARK.search(word) and len(found := pre_tokenizer.pre_tokenize_str(word)) > 1:
            cut, pieces = cut + count, pieces + count * len(found)
            example = max(example, word, key=lambda one: (counts[one] if one else 0, one))
    return WordCuts(share=cut / total, pieces=pieces / max(1, cut), example=example)


def dropped_accents(normalizer: Normalizer | None, texts: Iterable[str]) -> tuple[float, str]:
    """The share of the words whose accents or vowel signs a normaliser drops, and the most frequent of them."""
    if normalizer is None:
        return 0.0, ""
    counts = Counter(chain.from_iterable(map(words, texts)))
    lost = [word for word in counts if _marks(word) > _marks(normalizer.normalize_str(word))]
    share = sum(counts[word] for word in lost) / max(1, counts.total())
    return share, max(lost, key=lambda word: (counts[word], word), default="")


def dropped_accents_warning(normalizer: Normalizer | None, texts: Iterable[str]) -> str | None:
    """What is to be said where a normaliser drops accents of more than one word in a thousand."""
    share, word = dropped_accents(normalizer, texts)
    if normalizer is None or share <= MAX_DAMAGED_SHARE:
        return None
    becomes = normalizer.normalize_str(word)
    return f"the tokenizer drops accents or vowel signs of {share:.1%} of the words ({word} becomes {becomes})"


def _marks(text: str) -> int:
    return len(regex.findall(r"\p{M}", unicodedata.normalize("NFD", text)))


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Pieces a word of running text."""
    counts = Counter(chain.from_iterable(map(words, texts)))
    encoded = tokenizer.encode_batch_fast([" " + word for word in counts], add_special_tokens=False)
    pieces = sum(len(one.ids) * count for one, count in zip(encoded, counts.values(), strict=True))
    return pieces / max(1, counts.total())


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _joined(found: list[dict[str, Any]], inner: str) -> dict[str, Any]:
    return found[0] if len(found) == 1 else {"type": "Sequence", inner: found}
