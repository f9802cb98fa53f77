"""How many pieces a tokenizer needs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast


def fertility(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> dict[str, float]:
    """Pieces a word (split at blanks), pieces a character, and the share of unknown pieces.

    Words mean little in languages that are written without blanks; pieces a character compare there.
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
    """Fertility of each tokenizer, by its name, in each language of (language, text) pairs."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for lang, text in texts:
        found[lang].append(text)
    return {
        lang: {name: fertility(tokenizer, lines) for name, tokenizer in tokenizers.items()}
        for lang, lines in sorted(found.items())
    }
