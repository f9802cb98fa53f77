"""Vocabulary extension: the source tokenizer with tokens of a new language behind its own.

Every old id keeps its token, special or not. New tokens take part in the model's own way of splitting (they are no
`added_tokens`, which are cut out of the text before it is split): WordPiece takes the longest piece, Unigram the most probable
pieces with the scores of the new training, BPE applies the new merges after the old ones. The old merges come first, so a few
new BPE tokens are never reached where an old merge takes a part of them; how many is for the caller to count.

The added tokens of the source are written into the model's own vocabulary, at their ids. `tokenizers` does not keep the ids in
a file's `added_tokens`: it looks each of them up in the model, and numbers those that it does not find there from the model's
size on, which new pieces have moved.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any


def extend_vocabulary(old: dict[str, Any], trained: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """The `tokenizer.json` content `old` with the tokens of `trained`, of the same model type, that it lacks.

    Args:
        ids: every token of the source and its id, added tokens included.
    """
    result, model, theirs = dict(old), dict(old["model"]), trained["model"]
    special = {token["content"] for token in trained["added_tokens"]}
    if model["type"] == "Unigram":
        new = [pair for pair in theirs["vocab"] if pair[0] not in ids and pair[0] not in special]
        model["vocab"] = [*model["vocab"], *_behind(model["vocab"], ids), *new]
        return result | {"model": model}
    ordered = sorted(theirs["vocab"], key=theirs["vocab"].__getitem__)
    missing = [piece for piece in ordered if piece not in ids and piece not in special]
    taken = set(ids.values())
    free = (number for number in count() if number not in taken)
    model["vocab"] = dict(ids) | dict(zip(missing, free, strict=False))
    if model["type"] == "BPE":
        known = {tuple(merge) for merge in model["merges"]}
        new = [merge for merge in theirs["merges"] if tuple(merge) not in known and "".join(merge) not in ids]
        model["merges"] = [*model["merges"], *new]
    return result | {"model": model}


def _behind(pieces: list[list[Any]], ids: Mapping[str, int]) -> list[list[Any]]:
    """Unigram's ids are places in a list: the tokens whose ids lie behind its end, with scores at which no text is split
    into them."""
    floor = min(score for _, score in pieces) - 10.0
    by_id = {number: text for text, number in ids.items()}
    return [[by_id.get(number, f"<unused {number}>"), floor] for number in range(len(pieces), max(by_id) + 1)]
