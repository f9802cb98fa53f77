"""Vocabulary extension: appends tokens of a new language to the source tokenizer.

Every old id keeps its token, special or not. New tokens are pieces of the model, not `added_tokens`, which are cut out of the
text before it is split. WordPiece takes the longest piece, Unigram the most probable pieces with the scores of the new
training, and BPE applies the new merges after the old ones. Since the old merges come first, a few new BPE tokens are never
produced, where an old merge takes a part of them; the caller may count them.

The added tokens of the source are written into the model's vocabulary, at their ids. `tokenizers` ignores the ids in a file's
`added_tokens`: it looks each token up in the model, and numbers missing ones from the model's size on, which grows with the
new pieces.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any


def extend_vocabulary(old: dict[str, Any], trained: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """The `tokenizer.json` content `old` with the tokens of `trained`, of the same model type, that it lacks.

    Args:
        ids: every token of the source and its id, added tokens included.
    """
    result, model, new_model = dict(old), dict(old["model"]), trained["model"]
    special = {token["content"] for token in trained["added_tokens"]}
    if model["type"] == "Unigram":
        new = [pair for pair in new_model["vocab"] if pair[0] not in ids and pair[0] not in special]
        model["vocab"] = [*model["vocab"], *_pieces_after(model["vocab"], ids), *new]
        return result | {"model": model}
    ordered = sorted(new_model["vocab"], key=new_model["vocab"].__getitem__)
    missing = [piece for piece in ordered if piece not in ids and piece not in special]
    taken = set(ids.values())
    free = (number for number in count() if number not in taken)
    model["vocab"] = dict(ids) | dict(zip(missing, free, strict=False))
    if model["type"] == "BPE":
        old_merges = {tuple(merge) for merge in model["merges"]}
        new = [merge for merge in new_model["merges"] if tuple(merge) not in old_merges and "".join(merge) not in ids]
        model["merges"] = [*model["merges"], *new]
    return result | {"model": model}


def _pieces_after(pieces: list[list[Any]], ids: Mapping[str, int]) -> list[list[Any]]:
    """Entries for the tokens whose ids lie after the end of Unigram's list, whose ids are positions.

    Their scores are so low that no text is split into them.
    """
    floor = min(score for _, score in pieces) - 10.0
    by_id = {number: text for text, number in ids.items()}
    return [[by_id.get(number, f"<unused {number}>"), floor] for number in range(len(pieces), max(by_id) + 1)]
