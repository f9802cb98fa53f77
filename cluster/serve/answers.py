"""Bodies of responses, in the form of OpenAI's where it has one. Pure functions."""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import orjson
from numpy.typing import NDArray

from cluster.serve.config import ServeConfig
from cluster.serve.protocol import EmbeddingRequest, ModelCard, TokenIds, input_types, output_dtypes

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


def models(cards: Sequence[ModelCard], aliases: Mapping[str, str]) -> bytes:
    """The list of models, and of the names that stand for them."""
    entries = {card.name: _entry(card) for card in cards}
    others = [entries[name] | {"id": alias, "root": name} for alias, name in aliases.items()]
    return orjson.dumps({"object": "list", "data": [*entries.values(), *others]})


def model(card: ModelCard) -> bytes:
    """One model."""
    return orjson.dumps(_entry(card))


def info(cards: Sequence[ModelCard], config: ServeConfig) -> bytes:
    """What is served, by which version of Scion, and the limits of a request."""
    limits = {name: getattr(config, name) for name in ("max_inputs", "max_body_bytes", "max_queued_requests")}
    return orjson.dumps(
        {"server": "scion", "version": version("scion-lm"), "models": list(map(_entry, cards)), "limits": limits}
    )


def tokens(rows: TokenIds, card: ModelCard) -> bytes:
    """Token ids of texts, as `/v1/embeddings` takes them."""
    data = [{"object": "tokens", "index": index, "tokens": row} for index, row in enumerate(rows)]
    return orjson.dumps({"object": "list", "data": data, "model": card.id})


def _entry(card: ModelCard) -> dict[str, Any]:
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
        "max_length": card.max_length,
        "input_types": input_types(card),
        "output_dtypes": output_dtypes(card),
        "index_versions": indexes,
        "precision": card.precision,
        "lowest_cosine": card.lowest_cosine,
    }
