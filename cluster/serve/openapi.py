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


def document(card: ModelCard, config: ServeConfig) -> dict[str, Any]:
    """The document."""
    post = {
        "/v1/embeddings": ("Vectors of texts", "Request", "Embeddings"),
        "/tokenize": ("Token ids of texts, as /v1/embeddings takes them", "Request", "Tokens"),
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
    metrics = {"200": {"description": "Metrics of this process", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Scion embeddings", "version": version("scion-lm")},
        "paths": paths
        | {"/v1/models/{model}": {"get": one}}
        | {"/metrics": {"get": {"operationId": "metrics", "summary": "Metrics for Prometheus", "responses": metrics}}},
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
    vector = {"type": ["array", "string"], "items": {"type": "number"}, "description": "A string for base64."}
    entry = {"type": "object", "properties": {"index": {"type": "integer"}, "embedding": vector}}
    tokens = {"type": "object", "properties": {"index": {"type": "integer"}, "tokens": _ids(card)}}
    error = {key: {"type": ["string", "null"]} for key in ("message", "type", "param", "code")}
    return {
        "Request": _request(card, config),
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
    known = sorted({name for name, *_ in card.indexes})
    properties = {
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
    return {"type": "object", "required": ["model", "input"], "properties": properties, "additionalProperties": False}


def _choice(*values: str | int) -> dict[str, Any]:
    return {"enum": [*values, None]}


def _ids(card: ModelCard) -> dict[str, Any]:
    """Token ids of a text."""
    token = {"type": "integer", "minimum": 0, "maximum": card.vocabulary - 1}
    about = "With the special tokens of this model's tokenizer, as /tokenize returns them."
    return {"type": "array", "items": token, "minItems": 1, "maxItems": card.max_length, "description": about}
