"""Vocabulary extension: the source tokenizer with tokens of a new language behind its own.

Every old id keeps its token. New tokens take part in the model's own way of splitting (they are no `added_tokens`, which are
cut out of the text before it is split): WordPiece takes the longest piece, Unigram the most probable pieces with the scores
of the new training, BPE applies the new merges after the old ones. The old merges come first, so a few new BPE tokens are
never reached where an old merge takes a part of them; how many is for the caller to count.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerFast


def extended(source: PreTrainedTokenizerFast, trained: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The `tokenizer.json` of `source` with the tokens of `trained`, of the same model type, that it lacks."""
    spec, new = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (source, trained))
    have = source.get_vocab()
    first = max(have.values()) + 1
    model, theirs = spec["model"], new["model"]
    special = {token["content"] for token in new["added_tokens"]}
    if model["type"] == "Unigram":
        _fill(model["vocab"], have)
        model["vocab"] += [pair for pair in theirs["vocab"] if pair[0] not in have and pair[0] not in special]
        return dict(spec)
    missing = [piece for piece in sorted(theirs["vocab"], key=theirs["vocab"].__getitem__) if piece not in have]
    model["vocab"] |= {piece: first + place for place, piece in enumerate(piece for piece in missing if piece not in special)}
    if model["type"] == "BPE":
        known = {tuple(merge) for merge in model["merges"]}
        model["merges"] += [merge for merge in theirs["merges"] if tuple(merge) not in known and "".join(merge) not in have]
    return dict(spec)


def _fill(pieces: list[list[Any]], have: dict[str, int]) -> None:
    """Unigram's ids are places in a list: special tokens whose ids lie behind its end are written into it."""
    floor = min(score for _, score in pieces) - 10.0
    by_id = {number: text for text, number in have.items()}
    pieces += [[by_id.get(number, f"<unused {number}>"), floor] for number in range(len(pieces), max(by_id) + 1)]
