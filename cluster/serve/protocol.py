"""OpenAI's embeddings protocol: a request body in, a checked request out; vectors in, an answer out. Pure.

Token inputs are complete rows, special tokens included, as `Embedder.tokenize` gives them. A text that is too long is
cut, as in `Embedder.encode`; a row of token ids that is too long is refused, for nobody but its sender can cut it well.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError

TokenIds = Sequence[Sequence[int]]
"""Token ids of texts, special tokens included."""

_CREATED = 1735689600
"""Clients want a time of birth for a model; a fixed one keeps answers the same from start to start."""


class RequestError(UserError):
    """A request that is answered with an error: its HTTP status and what OpenAI's clients read from the body.

    `where` is the part of the request that is wrong, in OpenAI's words its `param`.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", status: int = 400, code: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, status, code)
        self.status, self.code = status, code

    def body(self) -> dict[str, Any]:
        """The answer, in OpenAI's shape."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.where or None, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is served, as far as a request can be checked against it."""

    name: str
    dimensions: tuple[int, ...]
    """Widths that may be asked for, the full one first."""
    max_length: int
    vocabulary: int
    """Token ids are below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A checked request. One of `texts` and `rows` is empty."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    dimensions: int | None
    is_base64: bool


def parse_request(body: bytes, card: ModelCard, max_inputs: int) -> EmbeddingRequest:
    """Reads and checks the body of `POST /v1/embeddings`. Keys that are not known are ignored.

    Raises:
        RequestError: with the status to answer and a message that says what was wrong, where, and what to do.
    """
    given = _object(body)
    _check_model(given.get("model"), card)
    if given.get("user") is not None and not isinstance(given["user"], str):
        raise RequestError(f"must be a string, got {_kind(given['user'])}.", "user", "Leave it out or send a string.")
    texts, rows = _inputs(given.get("input"), card, max_inputs)
    return EmbeddingRequest(
        texts=texts,
        token_ids=rows,
        dimensions=_dimensions(given.get("dimensions"), card),
        is_base64=_is_base64(given.get("encoding_format")),
    )


def check_tokenized(rows: TokenIds) -> None:
    """Refuses texts of which the tokenizer leaves nothing.

    Raises:
        RequestError: names the first such input.
    """
    for index, row in enumerate(rows):
        if not row:
            raise RequestError("the tokenizer leaves no token of this text.", f"input[{index}]", "Leave this text out.")


def response_body(vectors: NDArray[np.float32], rows: TokenIds, request: EmbeddingRequest, card: ModelCard) -> bytes:
    """The body that answers a request whose tokenized inputs are `rows`."""
    embeddings: list[str] | list[list[float]]
    if request.is_base64:
        embeddings = [base64.b64encode(vector.tobytes()).decode() for vector in vectors.astype("<f4")]
    else:
        embeddings = vectors.tolist()
    tokens = sum(map(len, rows))
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(embeddings)],
        "model": card.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json.dumps(content, separators=(",", ":")).encode()


def models_body(card: ModelCard) -> dict[str, Any]:
    """The answer to `GET /v1/models`: OpenAI's list, with what a client of an embedder wants to know."""
    entry = {"id": card.name, "object": "model", "created": _CREATED, "owned_by": "scion"}
    return {"object": "list", "data": [entry | {"dimensions": list(card.dimensions), "max_length": card.max_length}]}


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise RequestError(f"the body is not JSON ({reason}).", "", 'Send {"model": ..., "input": ...}.') from error
    if not isinstance(given, dict):
        raise RequestError(f"the body must be an object, got {_kind(given)}.", "", 'Send {"model": ..., "input": ...}.')
    return given


def _check_model(model: Any, card: ModelCard) -> None:
    if not isinstance(model, str):
        what = "is missing." if model is None else f"must be a string, got {_kind(model)}."
        raise RequestError(what, "model", f"Send {card.name!r}.")
    if model != card.name:
        raise RequestError(f"there is no model {model!r}.", "model", f"Served here: {card.name}.", 404, "model_not_found")


def _dimensions(dimensions: Any, card: ModelCard) -> int | None:
    if dimensions is None:
        return None
    offered = ", ".join(map(str, card.dimensions))
    if type(dimensions) is not int:  # not isinstance: True is an int
        raise RequestError(f"must be a whole number, got {_kind(dimensions)}.", "dimensions", f"Ask for one of {offered}.")
    if dimensions not in card.dimensions:
        raise RequestError(f"this model has no {dimensions} dimensions.", "dimensions", f"Ask for one of {offered}.")
    return dimensions


def _is_base64(encoding: Any) -> bool:
    if encoding not in (None, "float", "base64"):
        raise RequestError(f"{_short(encoding)} is not known.", "encoding_format", "Ask for 'float' or 'base64'.")
    return bool(encoding == "base64")


def _inputs(given: Any, card: ModelCard, max_inputs: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Texts and rows of token ids; a lone text or row is a list of one."""
    if isinstance(given, str):
        return (_text(given, "input"),), ()
    fix = "Send a text, a list of texts, a list of token ids, or a list of such lists."
    if not isinstance(given, list):
        what = "is missing." if given is None else f"must be a string or a list, got {_kind(given)}."
        raise RequestError(what, "input", fix)
    if not given:
        raise RequestError("is an empty list.", "input", fix)
    if type(given[0]) is int:
        return (), (_row(given, "input", card),)
    if len(given) > max_inputs:
        raise RequestError(f"has {len(given)} inputs, more than {max_inputs}.", "input", "Send them in several requests.")
    kind = type(given[0])
    for index, entry in enumerate(given):
        if not isinstance(entry, str | list) or type(entry) is not kind:
            alike = f" like input[0], a {_kind(given[0])}" if isinstance(given[0], str | list) else ""
            raise RequestError(f"is a {_kind(entry)}, must be a text or a list of token ids{alike}.", f"input[{index}]", fix)
    if kind is str:
        return tuple(_text(text, f"input[{index}]") for index, text in enumerate(given)), ()
    return (), tuple(_row(row, f"input[{index}]", card) for index, row in enumerate(given))


def _text(text: str, where: str) -> str:
    if not text:
        raise RequestError("is an empty string.", where, "Leave it out, or send a text of at least one character.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise RequestError(f"has half a character ({half}) at {error.start}.", where, "Send valid Unicode.") from error
    return text


def _row(row: list[Any], where: str, card: ModelCard) -> tuple[int, ...]:
    if not row:
        raise RequestError("is an empty list of token ids.", where, "Leave it out, or send at least one id.")
    if len(row) > card.max_length:
        what = f"has {len(row)} token ids, more than {card.max_length}."
        raise RequestError(what, where, "Send fewer, or the text itself, which is then cut.")
    for index, token in enumerate(row):
        if type(token) is not int:
            raise RequestError(f"is a {_kind(token)}, must be a token id.", f"{where}[{index}]", "Do not mix kinds.")
        if not 0 <= token < card.vocabulary:
            what = f"token id {token} is not within 0 and {card.vocabulary - 1}."
            raise RequestError(what, f"{where}[{index}]", "Send ids of this model's own tokenizer, or the text itself.")
    return tuple(row)


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {str: "string", list: "list", dict: "object", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else kinds[type(value)]


def _short(value: Any) -> str:
    """A value as a message quotes it."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."
