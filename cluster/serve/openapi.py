"""The endpoint as an OpenAPI 3.1 document, with what the served model offers. A pure function."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from cluster.serve import rerank
from cluster.serve.config import ServeConfig
from cluster.serve.protocol import ENCODINGS, ModelCard, input_types, output_dtypes, truncations

_ERRORS = {
    "400": "The request is wrong: the message says what, where, and what to do.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "409": "There is no map to the index that `index_version` names.",
    "413": "The body is too large.",
    "415": "The body's encoding is not known.",
    "429": "The server is busy; `Retry-After` says when to come back.",
    "500": "The model failed on this request.",
    "503": "The server ends.",
}

_MEANINGS = {
    "model": "The name of a served model, an alias, or NAME@VERSION.",
    "input": "A text, a list of texts, the token ids of a text, or a list of such lists.",
    "encoding_format": "Vectors as lists of numbers, or as base64 of their little-endian bytes. float by default.",
    "dimensions": "The first values of each vector, then normalized. All by default.",
    "user": "Ignored, as OpenAI's clients may send it.",
    "input_type": "The side of a search, or the name of a prompt, which then stands in front of the texts.",
    "prompt_name": "The same under its name in sentence-transformers.",
    "truncate": "Where a text that is too long is cut; none refuses it. end by default.",
    "layer": "The vector behind so many layers; the layers behind them are not computed. All by default.",
    "output_dtype": "float32, a byte for each value, or a bit, packed into int8 or uint8. float by default.",
    "index_version": "The earlier version of the embedder whose index the queries search.",
    "normalize": "Unit vectors, or vectors with their length. By default as the embedder was trained.",
}
"""What the keys of a request ask for."""


def document(cards: Sequence[ModelCard], aliases: Mapping[str, str], config: ServeConfig) -> dict[str, Any]:
    """The document."""
    post = {
        "/v1/embeddings": ("Vectors of texts", "Request", "Embeddings"),
        "/v1/rerank": ("Documents by their similarity to a query", "RerankRequest", "Ranking"),
        "/tokenize": ("Token ids of texts, as /v1/embeddings takes them", "TokenizeRequest", "Tokens"),
    }
    get = {
        "/v1/models": ("The models", "Models"),
        "/info": ("The models, and the version of Scion", "Info"),
        "/health": ("Answered once the model is loaded and warm", "Health"),
        "/ready": ("Answered once the model is loaded and warm", "Health"),
    }
    paths: dict[str, Any] = {path: {"post": _operation(path, *row)} for path, row in post.items()}
    paths |= {path: {"get": _operation(path, summary, None, answer)} for path, (summary, answer) in get.items()}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    one = _operation("/v1/models/model", "One model", None, "Model") | {"parameters": [name]}
    metrics = {"200": {"description": "Metrics of this process", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Scion embeddings", "version": version("scion-lm")},
        "paths": paths
        | {"/v1/models/{model}": {"get": one}}
        | {"/metrics": {"get": {"operationId": "metrics", "summary": "Metrics for Prometheus", "responses": metrics}}},
        "components": {
            "schemas": _schemas(cards, aliases, config),
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


def _schemas(cards: Sequence[ModelCard], aliases: Mapping[str, str], config: ServeConfig) -> dict[str, Any]:
    """Bodies of requests and responses, by name."""
    pieces = {"type": ["boolean", "null"], "description": "Whether the answer has the piece of text of each token."}
    requests = [_request(card, [one for one, name in aliases.items() if name == card.name], config) for card in cards]
    tokenizing = [asked | {"properties": asked["properties"] | {"pieces": pieces}} for asked in requests]
    reranks = [_rerank(asked, config) for asked in requests]
    error = {key: {"type": ["string", "null"]} for key in ("message", "type", "param", "code")}
    return {
        "Request": _any_of(requests),
        "TokenizeRequest": _any_of(tokenizing),
        "RerankRequest": _any_of(reranks),
        "Ranking": _ranking(),
        "Info": _info(),
        "Embeddings": _embeddings(),
        "Tokens": _listing(_tokens()),
        "Models": _listing({"$ref": "#/components/schemas/Model"}),
        "Model": _model(),
        "Health": {"type": "object", "properties": {"status": {"const": "ok"}}},
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object", "properties": error}}},
    }


def _any_of(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of a request to any of the models."""
    return requests[0] if len(requests) == 1 else {"oneOf": requests}


def _embeddings() -> dict[str, Any]:
    """The answer with vectors."""
    vector = {"type": ["array", "string"], "items": {"type": "number"}, "description": "A string for base64."}
    entry = {"type": "object", "properties": {"index": _of("integer", "Which input."), "embedding": vector}}
    counts = {key: {"type": "integer"} for key in ("prompt_tokens", "total_tokens")}
    usage = _of("object", "Tokens after the cut, special ones included.") | {"properties": counts}
    listing = _listing(entry)
    properties = listing["properties"] | {"model": {"type": "string"}, "usage": usage}
    return listing | {"required": ["object", "data", "model", "usage"], "properties": properties}


def _ranking() -> dict[str, Any]:
    """The answer with documents in their order."""
    document = {"type": "object", "properties": {"text": {"type": "string"}}, "description": "With return_documents."}
    properties = {
        "index": _of("integer", "Which document."),
        "relevance_score": _of("number", "The cosine of its vector with that of the query."),
        "document": document,
    }
    results = {"type": "array", "items": {"type": "object", "properties": properties}, "description": "The nearest first."}
    model = _of("string", "NAME@VERSION.")
    return {"type": "object", "required": ["model", "results"], "properties": {"model": model, "results": results}}


def _info() -> dict[str, Any]:
    """What is served."""
    models = {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}
    properties = {"server": {"const": "scion"}, "version": _of("string", "Of Scion."), "models": models}
    return {"type": "object", "required": list(properties), "properties": properties}


def _of(kind: str, about: str) -> dict[str, Any]:
    return {"type": kind, "description": about}


def _tokens() -> dict[str, Any]:
    """The tokens of a text in an answer."""
    texts, places = ({"type": "array", "items": {"type": kind}} for kind in ("string", "integer"))
    of_source = "by the tokenizer of the model that this one was made from, where the server knows it"
    properties = {
        "index": _of("integer", "Which input."),
        "tokens": places,
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
        "id": _of("string", "The name of the model in requests."),
        "root": _of("string", "The model for which an alias stands."),
        "version": _of("string", "A hash of its files."),
        "dimensions": numbers | {"description": "Widths of vectors, the full one first."},
        "layers": numbers | {"description": "Layers behind which a vector may be taken, beside the last one."},
        "pooling": _of("string", "How the vectors of tokens become that of a text."),
        "normalize": _of("boolean", "Whether vectors have length 1 where a request does not say."),
        "max_length": _of("integer", "Tokens of a text; the rest is cut."),
        "input_types": names | {"description": "What input_type may be."},
        "output_dtypes": names | {"description": "What output_dtype may be."},
        "index_versions": {"type": "array", "items": _index(), "description": "Earlier indexes that queries may search."},
        "precision": _of("string", "fp32 or bf16."),
        "lowest_cosine": {"type": ["number", "null"], "description": "Of a vector in bf16 with that in fp32, as measured."},
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


def _request(card: ModelCard, aliases: Sequence[str], config: ServeConfig) -> dict[str, Any]:
    """The body of a request; what it does not allow is refused."""
    text = {"type": "string", "minLength": 1}
    many = {"minItems": 1, "maxItems": config.max_inputs}
    inputs = [text, _ids(card), *({"type": "array", "items": kind} | many for kind in (text, _ids(card)))]
    known = sorted({name for name, *_ in card.indexes})
    properties: dict[str, dict[str, Any]] = {
        "model": {"enum": list(dict.fromkeys((card.name, card.id, *aliases)))},
        "input": {"anyOf": inputs},
        "encoding_format": _choice(*ENCODINGS),
        "dimensions": _choice(*card.dimensions),
        "user": {"type": ["string", "null"]},
        "input_type": _choice(*input_types(card)),
        "prompt_name": _choice(*input_types(card)),
        "truncate": _choice(*truncations(card)),
        "layer": _choice(*card.layers),
        "output_dtype": _choice(*output_dtypes(card)),
        "index_version": _choice(*known),
        "normalize": {"type": ["boolean", "null"]},
    }
    for key, about in _MEANINGS.items():
        properties[key]["description"] = about
    return {"type": "object", "required": ["model", "input"], "properties": properties, "additionalProperties": False}


def _rerank(request: dict[str, Any], config: ServeConfig) -> dict[str, Any]:
    """The body of a request to rank documents by the model of a request for vectors."""
    text = {"type": "string", "minLength": 1}
    either = {"anyOf": [text, {"type": "object", "required": ["text"], "properties": {"text": text}}]}
    documents = {"type": "array", "items": either, "minItems": 1, "maxItems": config.max_inputs}
    properties = {key: schema for key, schema in request["properties"].items() if key in rerank.KEYS} | {
        "query": text | {"description": "What the documents are compared with."},
        "documents": documents | {"description": "Texts, or objects with a text."},
        "top_n": {"type": ["integer", "null"], "minimum": 1, "description": "Documents of the answer. All by default."},
        "return_documents": {"type": ["boolean", "null"], "description": "Whether the answer repeats the documents."},
    }
    return request | {"required": ["model", "query", "documents"], "properties": properties}


def _choice(*values: str | int) -> dict[str, Any]:
    return {"enum": [*values, None]}


def _ids(card: ModelCard) -> dict[str, Any]:
    """Token ids of a text."""
    token = {"type": "integer", "minimum": 0, "maximum": card.vocabulary - 1}
    about = "With the special tokens of this model's tokenizer, as /tokenize returns them."
    return {"type": "array", "items": token, "minItems": 1, "maxItems": card.max_length, "description": about}
