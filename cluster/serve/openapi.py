"""The endpoint as an OpenAPI 3.1 document, with what the served model offers. A pure function."""

from importlib.metadata import version
from typing import Any

from cluster.serve.config import ServeConfig
from cluster.serve.protocol import ENCODINGS, OUTPUT_DTYPES, TRUNCATIONS, ModelCard, input_types

_ERRORS = {
    "400": "The request is wrong: the message says what, where, and what to do.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "409": "There is no map to the index that `index_version` names.",
    "413": "The body is too large.",
    "429": "The server is busy; `Retry-After` says when to come back.",
    "500": "The model failed on this request.",
    "503": "The server ends.",
}

_MEANINGS = {
    "model": "The name of the served model.",
    "input": "A text, a list of texts, the token ids of a text, or a list of such lists.",
    "encoding_format": "Vectors as lists of numbers, or as base64 of their little-endian bytes. float by default.",
    "dimensions": "The first values of each vector, then normalized. All by default.",
    "user": "Ignored, as OpenAI's clients may send it.",
    "input_type": "The side of a search, or the name of a prompt, which then stands in front of the texts.",
    "prompt_name": "The same under its name in sentence-transformers.",
    "truncate": "Whether a text that is too long is cut at its end, or refused. end by default.",
    "layer": "The vector behind so many layers; the layers behind them are not computed. All by default.",
    "output_dtype": "float32, or a bit for each value, packed into int8 or uint8. float by default.",
    "index_version": "The earlier version of the embedder whose index the queries search.",
    "normalize": "Unit vectors, or vectors with their length. By default as the embedder was trained.",
}
"""What the keys of a request ask for."""


def document(card: ModelCard, config: ServeConfig) -> dict[str, Any]:
    """The document."""
    post = {
        "/v1/embeddings": ("Vectors of texts", "Request", "Embeddings"),
        "/tokenize": ("Token ids of texts, as /v1/embeddings takes them", "TokenizeRequest", "Tokens"),
    }
    get = {
        "/v1/models": ("The models", "Models"),
        "/health": ("Answered once the model is loaded and warm", "Health"),
        "/ready": ("Answered once the model is loaded and warm", "Health"),
    }
    paths: dict[str, Any] = {path: {"post": _operation(path, *row)} for path, row in post.items()}
    paths |= {path: {"get": _operation(path, summary, None, answer)} for path, (summary, answer) in get.items()}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    one = _operation("/v1/models/model", "One model", None, "Model") | {"parameters": [name]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Scion embeddings", "version": version("scion-lm")},
        "paths": paths | {"/v1/models/{model}": {"get": one}},
        "components": {
            "schemas": _schemas(card, config),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, summary: str, body: str | None, answer: str) -> dict[str, Any]:
    """A method of a path: the names of its body, if it takes one, and of its answer."""
    responses = {"200": {"description": summary, "content": _json(answer)}}
    if path not in ("/health", "/ready"):
        responses |= {status: {"description": text, "content": _json("Error")} for status, text in _ERRORS.items()}
    operation: dict[str, Any] = {"operationId": path.strip("/").replace("/", "_"), "summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _schemas(card: ModelCard, config: ServeConfig) -> dict[str, Any]:
    """Bodies of requests and responses, by name."""
    pieces = {"type": ["boolean", "null"], "description": "Whether the answer has the piece of text of each token."}
    asked = _request(card, config)
    error = {key: {"type": ["string", "null"]} for key in ("message", "type", "param", "code")}
    return {
        "Request": asked,
        "TokenizeRequest": asked | {"properties": asked["properties"] | {"pieces": pieces}},
        "Embeddings": _embeddings(),
        "Tokens": _listing(_tokens(card)),
        "Models": _listing({"$ref": "#/components/schemas/Model"}),
        "Model": _model(),
        "Health": {"type": "object", "properties": {"status": {"const": "ok"}}},
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object", "properties": error}}},
    }


def _embeddings() -> dict[str, Any]:
    """The answer with vectors."""
    vector = {"type": ["array", "string"], "items": {"type": "number"}, "description": "A string for base64."}
    entry = {"type": "object", "properties": {"index": _of("integer", "Which input."), "embedding": vector}}
    counts = {key: {"type": "integer"} for key in ("prompt_tokens", "total_tokens")}
    usage = _of("object", "Tokens after the cut, special ones included.") | {"properties": counts}
    listing = _listing(entry)
    properties = listing["properties"] | {"model": {"type": "string"}, "usage": usage}
    return listing | {"required": ["object", "data", "model", "usage"], "properties": properties}


def _of(kind: str, about: str) -> dict[str, Any]:
    return {"type": kind, "description": about}


def _tokens(card: ModelCard) -> dict[str, Any]:
    """The tokens of a text in an answer."""
    texts, places = ({"type": "array", "items": {"type": kind}} for kind in ("string", "integer"))
    of_source = "by the tokenizer of the model that this one was made from, where the server knows it"
    properties = {
        "index": _of("integer", "Which input."),
        "tokens": _ids(card),
        "pieces": texts | {"description": "With pieces: the text of each token; <0xCE> is a byte that is no whole character."},
        "special_pieces": places | {"description": "With pieces: which of them are special tokens."},
        "unknown_pieces": places | {"description": "With pieces: which of them the vocabulary cannot spell."},
        "source_pieces": texts | {"description": f"With pieces: those of the text {of_source}; without prompt, not cut."},
        "source_special_pieces": places | {"description": "With pieces: which of source_pieces are special tokens."},
        "source_unknown_pieces": places | {"description": "With pieces: which of source_pieces its vocabulary cannot spell."},
    }
    return {"type": "object", "required": ["index", "tokens"], "properties": properties}


def _model() -> dict[str, Any]:
    """A model in an answer."""
    numbers, names = ({"type": "array", "items": {"type": kind}} for kind in ("integer", "string"))
    properties: dict[str, Any] = {
        "id": _of("string", "What model of a request must be."),
        "dimensions": numbers | {"description": "Widths of vectors, the full one first."},
        "layers": numbers | {"description": "Layers behind which a vector may be taken, beside the last one."},
        "max_length": _of("integer", "Tokens of a text; the rest is cut."),
        "input_types": names | {"description": "What input_type may be."},
        "output_dtypes": names | {"description": "What output_dtype may be."},
        "index_versions": {"type": "array", "items": _index(), "description": "Earlier indexes that queries may search."},
        "max_inputs": _of("integer", "Most inputs of a request."),
        "max_body_bytes": _of("integer", "Most bytes of a request."),
    }
    return {"type": "object", "required": ["id"], "properties": properties}


def _index() -> dict[str, Any]:
    """An earlier index, and the vectors that it holds."""
    layer = {"type": ["integer", "null"], "description": "null for all layers."}
    return {
        "type": "object",
        "properties": {"index_version": {"type": "string"}, "dimensions": {"type": "integer"}, "layer": layer},
    }


def _listing(entry: dict[str, Any]) -> dict[str, Any]:
    properties = {"object": {"const": "list"}, "data": {"type": "array", "items": entry}}
    return {"type": "object", "required": ["object", "data"], "properties": properties}


def _request(card: ModelCard, config: ServeConfig) -> dict[str, Any]:
    """The body of a request; what it does not allow is refused."""
    text = {"type": "string", "minLength": 1}
    many = {"minItems": 1, "maxItems": config.max_inputs}
    inputs = [text, _ids(card), *({"type": "array", "items": kind} | many for kind in (text, _ids(card)))]
    known = sorted({name for name, *_ in card.indexes})
    properties: dict[str, dict[str, Any]] = {
        "model": {"const": card.name},
        "input": {"anyOf": inputs},
        "encoding_format": _choice(*ENCODINGS),
        "dimensions": _choice(*card.dimensions),
        "user": {"type": ["string", "null"]},
        "input_type": _choice(*input_types(card)),
        "prompt_name": _choice(*input_types(card)),
        "truncate": _choice(*TRUNCATIONS),
        "layer": _choice(*card.layers),
        "output_dtype": _choice(*OUTPUT_DTYPES),
        "index_version": _choice(*known),
        "normalize": {"type": ["boolean", "null"]},
    }
    for key, about in _MEANINGS.items():
        properties[key]["description"] = about
    return {"type": "object", "required": ["model", "input"], "properties": properties, "additionalProperties": False}


def _choice(*values: str | int) -> dict[str, Any]:
    return {"enum": [*values, None]}


def _ids(card: ModelCard) -> dict[str, Any]:
    """Token ids of a text."""
    token = {"type": "integer", "minimum": 0, "maximum": card.vocabulary - 1}
    about = "With the special tokens of this model's tokenizer, as /tokenize returns them."
    return {"type": "array", "items": token, "minItems": 1, "maxItems": card.max_length, "description": about}
