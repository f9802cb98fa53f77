"""OpenAI's embeddings protocol: parses and checks request bodies, and builds response bodies. Pure functions.

Token inputs include special tokens, as `Embedder.tokenize` returns them. A text that is too long is cut, as in
`Embedder.encode`; a list of token ids that is too long is refused, because only its sender can cut it well.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from data_pipeline.errors import UserError

TokenIds = Sequence[Sequence[int]]
"""Token ids of texts, special tokens included."""

SIDES = ("query", "document")
"""What a text may be in a search; every embedder can be asked for both."""
_CREATED = 1735689600
"""Clients expect a creation time of the model; a fixed one keeps answers the same after a restart."""


class RequestError(UserError):
    """An error in a request, with the HTTP status and the code that OpenAI's clients read.

    `where` is the wrong part of the request, which OpenAI calls `param`.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", status: int = 400, code: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, status, code)
        self.status, self.code = status, code

    def body(self) -> dict[str, Any]:
        """The response body, in OpenAI's format."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.where or None, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The properties of the served model against which requests are checked."""

    name: str
    dimensions: tuple[int, ...]
    """Allowed widths, the full one first."""
    max_length: int
    vocabulary: int
    """Upper bound of token ids, exclusive."""
    prompts: tuple[str, ...] = ()
    """Names of the prompts that a request may ask for, beside `query` and `document`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A checked request. Either `texts` or `token_ids` is empty."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    dimensions: int | None
    is_base64: bool
    input_type: str | None = None
    """The name of the prompt in front of the texts; the embedder's default prompt when not given."""


def parse_request(body: bytes, card: ModelCard, max_inputs: int) -> EmbeddingRequest:
    """Parses and checks the body of `POST /v1/embeddings`. Ignores unknown keys.

    Raises:
        RequestError: the request is invalid; has the status to answer and a message that says what is wrong, where, and how
            to fix it.
    """
    content = _object(body)
    _check_model(content.get("model"), card)
    if content.get("user") is not None and not isinstance(content["user"], str):
        raise RequestError(f"must be a string, got {_kind(content['user'])}.", "user", "Leave it out or send a string.")
    texts, rows = _inputs(content.get("input"), card, max_inputs)
    return EmbeddingRequest(
        texts=texts,
        token_ids=rows,
        dimensions=_dimensions(content.get("dimensions"), card),
        is_base64=_is_base64(content.get("encoding_format")),
        input_type=_input_type(content.get("input_type"), card, bool(texts)),
    )


def check_tokenized(rows: TokenIds) -> None:
    """Refuses texts without tokens.

    Raises:
        RequestError: names the first such input.
    """
    for index, row in enumerate(rows):
        if not row:
            raise RequestError("the tokenizer leaves no token of this text.", f"input[{index}]", "Leave this text out.")


def response_body(vectors: NDArray[np.float32], rows: TokenIds, request: EmbeddingRequest, card: ModelCard) -> bytes:
    """The response body of a request whose tokenized inputs are `rows`."""
    embeddings: list[str] | list[NDArray[np.float32]]
    if request.is_base64:
        embeddings = [base64.b64encode(vector.tobytes()).decode() for vector in vectors.astype("<f4")]
    else:
        embeddings = list(np.ascontiguousarray(vectors))
    tokens = sum(map(len, rows))
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(embeddings)],
        "model": card.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def models_body(card: ModelCard) -> dict[str, Any]:
    """The response body of `GET /v1/models`: OpenAI's list, with the dimensions and the longest input of the embedder."""
    entry = {"id": card.name, "object": "model", "created": _CREATED, "owned_by": "scion"}
    offered = {"dimensions": list(card.dimensions), "max_length": card.max_length, "input_types": list(_input_types(card))}
    return {"object": "list", "data": [entry | offered]}


def _object(body: bytes) -> dict[str, Any]:
    """The body parsed as a JSON object; RequestError if it is anything else."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON ({error}).", "", 'Send {"model": ..., "input": ...}.') from error
    if not isinstance(content, dict):
        raise RequestError(f"the body must be an object, got {_kind(content)}.", "", 'Send {"model": ..., "input": ...}.')
    return content


def _check_model(model: Any, card: ModelCard) -> None:
    if not isinstance(model, str):
        what = "is missing." if model is None else f"must be a string, got {_kind(model)}."
        raise RequestError(what, "model", f"Send {card.name!r}.")
    if model != card.name:
        raise RequestError(f"there is no model {model!r}.", "model", f"Served here: {card.name}.", 404, "model_not_found")


def _dimensions(dimensions: Any, card: ModelCard) -> int | None:
    """The requested length of the vectors, None for the model's default; RequestError if the model does not offer it."""
    if dimensions is None:
        return None
    offered = ", ".join(map(str, card.dimensions))
    if type(dimensions) is not int:  # not isinstance: True is an int
        raise RequestError(f"must be a whole number, got {_kind(dimensions)}.", "dimensions", f"Ask for one of {offered}.")
    if dimensions not in card.dimensions:
        raise RequestError(f"this model has no {dimensions} dimensions.", "dimensions", f"Ask for one of {offered}.")
    return dimensions


def _input_types(card: ModelCard) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*SIDES, *card.prompts)))


def _input_type(name: Any, card: ModelCard, has_texts: bool) -> str | None:
    """The requested prompt; RequestError if there is none of this name, or no text in front of which it could stand."""
    if name is None:
        return None
    offered = ", ".join(_input_types(card))
    if name not in _input_types(card):
        raise RequestError(f"{_short(name)} is not known.", "input_type", f"Ask for one of {offered}, or leave it out.")
    if not has_texts:
        raise RequestError("a list of token ids has its prompt already.", "input_type", "Leave it out, or send texts.")
    return str(name)


def _is_base64(encoding: Any) -> bool:
    if encoding not in (None, "float", "base64"):
        raise RequestError(f"{_short(encoding)} is not known.", "encoding_format", "Ask for 'float' or 'base64'.")
    return bool(encoding == "base64")


def _inputs(inputs: Any, card: ModelCard, max_inputs: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Texts and lists of token ids; a single text or list counts as a list of one."""
    if isinstance(inputs, str):
        return (_text(inputs, "input"),), ()
    fix = "Send a text, a list of texts, a list of token ids, or a list of such lists."
    if not isinstance(inputs, list):
        what = "is missing." if inputs is None else f"must be a string or a list, got {_kind(inputs)}."
        raise RequestError(what, "input", fix)
    if not inputs:
        raise RequestError("is an empty list.", "input", fix)
    if type(inputs[0]) is int:
        return (), (_row(inputs, "input", card),)
    if len(inputs) > max_inputs:
        raise RequestError(f"has {len(inputs)} inputs, more than {max_inputs}.", "input", "Send them in several requests.")
    kind = type(inputs[0])
    for index, entry in enumerate(inputs):
        if not isinstance(entry, str | list) or type(entry) is not kind:
            alike = f" like input[0], a {_kind(inputs[0])}" if isinstance(inputs[0], str | list) else ""
            raise RequestError(f"is a {_kind(entry)}, must be a text or a list of token ids{alike}.", f"input[{index}]", fix)
    if kind is str:
        return tuple(_text(text, f"input[{index}]") for index, text in enumerate(inputs)), ()
    return (), tuple(_row(row, f"input[{index}]", card) for index, row in enumerate(inputs))


def _text(text: str, where: str) -> str:
    """The input text unchanged; RequestError if it is empty. `where` names it in the error."""
    if not text:
        raise RequestError("is an empty string.", where, "Leave it out, or send a text of at least one character.")
    return text


def _row(row: list[Any], where: str, card: ModelCard) -> tuple[int, ...]:
    """The input's token ids as a tuple; RequestError if there are none, too many, or one is outside of the vocabulary."""
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
    """The JSON type of a value."""
    kinds = {str: "string", list: "list", dict: "object", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else kinds[type(value)]


def _short(value: Any) -> str:
    """A value, shortened for a message."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:40] + "..."
