"""Fertility: the number of pieces that a tokenizer needs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast


def fertility(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> dict[str, float]:
    """Pieces per word (split at blanks), pieces per character, and the share of unknown pieces.

    In languages written without blanks compare the pieces per character: words mean little there.
    """
    pieces = words = characters = unknown = 0
    for text in texts:
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        pieces += len(ids)
        words += len(text.split())
        characters += len(text) - text.count(" ") - text.count("\n")
        unknown += sum(number == tokenizer.unk_token_id for number in ids)
    return {
        "pieces_per_word": pieces / max(1, words),
        "pieces_per_character": pieces / max(1, characters),
        "unknown": unknown / max(1, pieces),
    }


def by_language(tokenizers: Mapping[str, PreTrainedTokenizerFast], texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The fertility by language and tokenizer name, from (language, text) tuples."""
    texts_by_language: defaultdict[str, list[str]] = defaultdict(list)
    for lang, text in texts:
        texts_by_language[lang].append(text)
    return {
        lang: {name: fertility(tokenizer, lines) for name, tokenizer in tokenizers.items()}
        for lang, lines in sorted(texts_by_language.items())
    }
