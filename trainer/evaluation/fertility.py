"""How many pieces a tokenizer needs."""

from collections.abc import Iterable

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
