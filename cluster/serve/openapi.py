"""The endpoint as an OpenAPI 3.1 document, with what the served model offers. A pure function."""

from collections.abc import Sequence
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


def document(cards: Sequence[ModelCard], config: ServeConfig) -> dict[str, Any]:
    """The document."""
    post = {
        "/v1/embeddings": ("Vectors of texts", "Request", "Embeddings"),
        "/v1/rerank": ("Documents by their similarity to a query", "RerankRequest", "Ranking"),
        "/tokenize": ("Token ids of texts, as /v1/embeddings takes them", "Request", "Tokens"),
    }
    get = {
        "/v1/models": ("The models", "Models"),
        "/info": ("The models, the version of Scion, and the limits of a request", "Info"),
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
            "schemas": _schemas(cards, config),
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


def _schemas(cards: Sequence[ModelCard], config: ServeConfig) -> dict[str, Any]:
    """Bodies of requests and responses, by name."""
    vector = {"type": ["array", "string"], "items": {"type": "number"}, "description": "A string for base64."}
    entry = {"type": "object", "properties": {"index": {"type": "integer"}, "embedding": vector}}
    tokens = {
        "type": "object",
        "properties": {"index": {"type": "integer"}, "tokens": {"type": "array", "items": {"type": "integer"}}},
    }
    requests = [_request(card, config) for card in cards]
    reranks = [_rerank(request, config) for request in requests]
    error = {key: {"type": ["string", "null"]} for key in ("message", "type", "param", "code")}
    return {
        "Request": requests[0] if len(requests) == 1 else {"oneOf": requests},
        "RerankRequest": reranks[0] if len(reranks) == 1 else {"oneOf": reranks},
        "Ranking": {"type": "object", "properties": {"results": {"type": "array", "items": {"type": "object"}}}},
        "Info": {"type": "object", "required": ["server", "version", "models", "limits"]},
        "Embeddings": _listing(entry) | {"required": ["object", "data", "model", "usage"]},
        "Tokens": _listing(tokens),
        "Models": _listing({"$ref": "#/components/schemas/Model"}),
        "Model": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        "Health": {"type": "object", "properties": {"status": {"const": "ok"}}},
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object", "properties": error}}},
    }


def _listing(entry: dict[str, Any]) -> dict[str, Any]:
    properties = {"object": {"const": "list"}, "data": {"type": "array", "items": entry}}
    return {"type": "object", "required": ["object", "data"], "properties": properties}


def _request(card: ModelCard, config: ServeConfig) -> dict[str, Any]:
    """The body of a request; what it does not allow is refused."""
    text = {"type": "string", "minLength": 1}
    many = {"minItems": 1, "maxItems": config.max_inputs}
    inputs = [text, _ids(card), *({"type": "array", "items": kind} | many for kind in (text, _ids(card)))]
    aliases = [alias for alias, name in config.aliases.items() if name == card.name]
    known = sorted({name for name, *_ in card.indexes})
    properties = {
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
    return {"type": "object", "required": ["model", "input"], "properties": properties, "additionalProperties": False}


def _rerank(request: dict[str, Any], config: ServeConfig) -> dict[str, Any]:
    """The body of a request to rank documents by the model of a request for vectors."""
    text = {"type": "string", "minLength": 1}
    either = {"anyOf": [text, {"type": "object", "required": ["text"], "properties": {"text": text}}]}
    properties = {key: schema for key, schema in request["properties"].items() if key in rerank.KEYS} | {
        "query": text,
        "documents": {"type": "array", "items": either, "minItems": 1, "maxItems": config.max_inputs},
        "top_n": {"type": ["integer", "null"], "minimum": 1},
        "return_documents": {"type": ["boolean", "null"]},
    }
    return request | {"required": ["model", "query", "documents"], "properties": properties}


def _choice(*values: str | int) -> dict[str, Any]:
    return {"enum": [*values, None]}


def _ids(card: ModelCard) -> dict[str, Any]:
    """Token ids of a text."""
    token = {"type": "integer", "minimum": 0, "maximum": card.vocabulary - 1}
    about = "With the special tokens of this model's tokenizer, as /tokenize returns them."
    return {"type": "array", "items": token, "minItems": 1, "maxItems": card.max_length, "description": about}
