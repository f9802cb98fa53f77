"""Bodies of responses, in the form of OpenAI's where it has one. Pure functions."""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import orjson
from numpy.typing import NDArray

from cluster.serve.config import ServeConfig
from cluster.serve.protocol import EmbeddingRequest, ModelCard, TokenIds, input_types, output_dtypes
from data_pipeline.tokenizers.pieces import Pieces

TextPieces = tuple[Pieces, Pieces | None]
"""The pieces of a text, and those of the source tokenizer where the server knows it."""

_CREATED = 1735689600
"""Clients expect a creation time of the model; a fixed one keeps answers the same after a restart."""


def embeddings(values: NDArray[Any], rows: TokenIds, asked: EmbeddingRequest, card: ModelCard) -> bytes:
    """The answer to a request whose tokenized inputs are `rows`, with values of the type that it asks for."""
    entries: list[Any] = list(values)
    if asked.output.is_base64:  # little-endian, as clients read it
        entries = [base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode() for value in values]
    tokens = sum(map(len, rows))
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(entries)],
        "model": card.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def models(cards: Sequence[ModelCard], aliases: Mapping[str, str], config: ServeConfig) -> bytes:
    """The list of models, and of the names that stand for them."""
    entries = {card.name: _entry(card, config) for card in cards}
    others = [entries[name] | {"id": alias, "root": name} for alias, name in aliases.items() if name in entries]
    return orjson.dumps({"object": "list", "data": [*entries.values(), *others]})


def model(card: ModelCard, config: ServeConfig, alias: str | None = None) -> bytes:
    """One model, by its name or by one that stands for it."""
    named = {} if alias is None else {"id": alias, "root": card.name}
    return orjson.dumps(_entry(card, config) | named)


def info(cards: Sequence[ModelCard], config: ServeConfig) -> bytes:
    """What is served, and by which version of Scion."""
    entries = [_entry(card, config) for card in cards]
    return orjson.dumps({"server": "scion", "version": version("scion-lm"), "models": entries})


def tokens(rows: TokenIds, card: ModelCard, pieces: Sequence[TextPieces] = ()) -> bytes:
    """Token ids of texts, as `/v1/embeddings` takes them.

    Args:
        pieces: of each text, if the request asks for them.
    """
    data: list[dict[str, Any]] = [{"object": "tokens", "index": index, "tokens": row} for index, row in enumerate(rows)]
    for entry, (own, source) in zip(data, pieces, strict=False):
        entry |= _pieces(own, "")
        if source is not None:
            entry |= _pieces(source, "source_")
    return orjson.dumps({"object": "list", "data": data, "model": card.id})


def _pieces(found: Pieces, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}pieces": found.pieces,
        f"{prefix}special_pieces": found.special,
        f"{prefix}unknown_pieces": found.unknown,
    }


def _entry(card: ModelCard, config: ServeConfig) -> dict[str, Any]:
    """A model as OpenAI lists it, and what may be asked of it."""
    indexes = [{"index_version": version, "dimensions": width, "layer": layers} for version, width, layers in card.indexes]
    return {
        "id": card.name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "scion",
        "version": card.version,
        "dimensions": card.dimensions,
        "layers": card.layers,
        "pooling": card.pooling,
        "normalize": card.is_normalized,
        "max_length": card.max_length,
        "input_types": input_types(card),
        "output_dtypes": output_dtypes(card),
        "index_versions": indexes,
        "precision": card.precision,
        "lowest_cosine": card.lowest_cosine,
        "max_inputs": config.max_inputs,
        "max_body_bytes": config.max_body_bytes,
    }
