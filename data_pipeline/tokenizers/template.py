"""The special tokens that a tokenizer's post-processor, nested or not, puts around a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def renumber(processor: dict[str, Any] | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor of a `tokenizer.json` with the ids that `ids` gives its tokens.

    transformers' own `train_new_from_iterator` renumbers only the outermost processor (its issues 30752 and 33998).

    Raises:
        ModelError: a token of the template is not in the vocabulary.
    """
    if processor is None:
        return None
    result = dict(processor)
    if processor["type"] == "Sequence":
        result["processors"] = [renumber(part, ids) for part in processor["processors"]]
    elif processor["type"] == "TemplateProcessing":
        result["special_tokens"] = {
            name: {**entry, "ids": [_id(token, ids) for token in entry["tokens"]]}
            for name, entry in processor["special_tokens"].items()
        }
    else:  # BertProcessing, RobertaProcessing
        result |= {name: [processor[name][0], _id(processor[name][0], ids)] for name in ("sep", "cls") if name in processor}
    return result


def template_tokens(processor: dict[str, Any] | None) -> Iterator[tuple[str, int]]:
    """Each token that the post-processor can insert, with the id that it inserts."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        yield from template_tokens(part)
    for entry in processor.get("special_tokens", {}).values():
        yield from zip(entry["tokens"], entry["ids"], strict=True)
    yield from ((processor[name][0], processor[name][1]) for name in ("sep", "cls") if name in processor)


def template_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer itself puts before and after a text."""
    encoded = tokenizer.backend_tokenizer.encode("a")
    inside = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    first, last = (inside[0], inside[-1]) if inside else (len(encoded), len(encoded))
    return tuple(encoded.ids[:first]), tuple(encoded.ids[last + 1 :])


def _id(token: str, ids: Mapping[str, int]) -> int:
    if token not in ids:
        raise ModelError(f"its template inserts {token!r}, which the vocabulary lacks.", "tokenizer", "Add the token to it.")
    return ids[token]
