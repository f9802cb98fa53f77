"""OpenAI's embeddings protocol, and what Scion adds to it: parses and checks request bodies. Pure functions.

What a request asks for is done or refused, never ignored. Token inputs include special tokens, as `Embedder.tokenize` and
`/tokenize` return them: ids without them are of another tokenizer, as langchain sends them by default, and would get wrong
vectors. A text that is too long is cut, as in `Embedder.encode`; a list of token ids that is too long is refused, because only
its sender can cut it well.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from data_pipeline.errors import UserError
from trainer.quantization import BITS, BYTES, DTYPES

TokenIds = Sequence[Sequence[int]]
"""Token ids of texts, special tokens included."""

SIDES = ("query", "document")
"""What a text may be in a search; every embedder can be asked for both."""
ENCODINGS = ("float", "base64")
_SHORT = 40
"""Characters of a value in a message."""
KEYS = (
    "model", "input", "encoding_format", "dimensions", "user",
    "input_type", "prompt_name", "truncate", "layer", "output_dtype", "index_version", "normalize",
)  # fmt: skip
"""Keys of a request. The first five are OpenAI's."""
TOKENIZE_KEYS = (*KEYS, "pieces")
"""Keys of a request to `/tokenize`."""


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
    version: str = ""
    """Identity of its files."""
    dimensions: tuple[int, ...]
    """Allowed widths, the full one first."""
    max_length: int
    vocabulary: int
    """Upper bound of token ids, exclusive."""
    pooling: str = "mean"
    is_normalized: bool = True
    """Whether vectors have length 1 where a request does not say."""
    prompts: tuple[str, ...] = ()
    """Names of the prompts that a request may ask for, beside `query` and `document`."""
    layers: tuple[int, ...] = ()
    """Numbers of layers behind which a vector may be taken."""
    indexes: tuple[tuple[str, int, int | None], ...] = ()
    """Versions, widths and layers of the earlier indexes that a query may search."""
    calibrated: tuple[tuple[int, int | None], ...] = ()
    """Widths and layers at which vectors can be bytes."""
    has_template: bool = False
    """Whether words stand around a text, which is then cut at its end only."""
    takes_ids: bool = True
    """Whether a request may have token ids: they do not say which of them are pooled, as echo embeddings need."""
    precision: str = "fp32"
    lowest_cosine: float | None = None
    """Of a vector in this precision with that in fp32, measured at the start; None for fp32."""
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    """Special tokens before and after each text."""

    @property
    def id(self) -> str:
        """The model as answers name it: NAME@VERSION."""
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Which vectors a request asks for."""

    dimensions: int | None = None
    layers: int | None = None
    index: str | None = None
    """The version whose index the queries search."""
    is_normalized: bool | None = None
    """As the embedder does it if None."""
    dtype: str = "float"
    is_base64: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A checked request. Either `texts` or `token_ids` is empty."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    input_type: str | None = None
    """The name of the prompt in front of the texts; the embedder's default prompt when not given."""
    truncate: str = "end"
    """Where a text that is too long is cut; it is refused for `none`."""
    has_pieces: bool = False
    """Whether the answer has the piece of text of each token."""
    output: Output = field(default_factory=Output)


def parse_request(content: dict[str, Any], card: ModelCard, max_inputs: int, keys: Sequence[str] = KEYS) -> EmbeddingRequest:
    """Checks the body of `POST /v1/embeddings`, or with TOKENIZE_KEYS that of `POST /tokenize`, to the model of the card.

    Raises:
        RequestError: the request is invalid; has the status to answer and a message that says what is wrong, where, and how
            to fix it.
    """
    check_keys(content, keys)
    if content.get("user") is not None and not isinstance(content["user"], str):
        raise RequestError(f"must be a string, got {kind_of(content['user'])}.", "user", "Leave it out or send a string.")
    texts, rows = _inputs(content.get("input"), card, max_inputs)
    input_type = _input_type(content, card, bool(texts))
    return EmbeddingRequest(
        texts=texts,
        token_ids=rows,
        input_type=input_type,
        truncate=_one_of(content, "truncate", truncations(card)),
        has_pieces=_pieces(content, bool(texts)),
        output=_output(content, card, input_type),
    )


def _pieces(content: dict[str, Any], has_texts: bool) -> bool:
    """Whether the request asks for pieces; RequestError if it has no text whose pieces they could be."""
    wanted = content.get("pieces")
    if not isinstance(wanted, bool | None):
        raise RequestError(f"must be true or false, got {kind_of(wanted)}.", "pieces", "Send a boolean.")
    if wanted and not has_texts:
        raise RequestError("a list of token ids has no text whose pieces they are.", "pieces", "Send texts.")
    if wanted and content.get("truncate") == "start":
        raise RequestError("the pieces of a text are those from its start on.", "pieces", "Ask for truncate end or none.")
    return bool(wanted)


def _output(content: dict[str, Any], card: ModelCard, input_type: str | None) -> Output:
    """The vectors that a request asks for; RequestError if the model does not offer them."""
    output = Output(
        dimensions=_number(content, "dimensions", card.dimensions),
        layers=_number(content, "layer", card.layers),
        index=content.get("index_version"),
        is_normalized=content.get("normalize"),
        dtype=_one_of(content, "output_dtype", DTYPES),
        is_base64=_one_of(content, "encoding_format", ENCODINGS) == "base64",
    )
    if not isinstance(output.is_normalized, bool | None):
        raise RequestError(f"must be true or false, got {kind_of(output.is_normalized)}.", "normalize", "Send a boolean.")
    width = output.dimensions or card.dimensions[0]
    if output.dtype in BYTES:
        _check_calibrated(output, width, card)
    if output.dtype in BITS and width % 8:
        what = f"packs 8 values into a byte, and {width} are no multiple of 8."
        raise RequestError(what, "output_dtype", "Ask for other dimensions, or for float.")
    if output.index is not None:
        _check_index(output, width, card, input_type)
    return output


def _check_calibrated(output: Output, width: int, card: ModelCard) -> None:
    """RequestError if the ranges of the values are not known."""
    if (width, output.layers) not in card.calibrated:
        fix = "Ask for float or binary. `scion embed` calibrates what it trains, Embedder.calibrate any other embedder."
        raise RequestError("this model is not calibrated for bytes at this width and depth.", "output_dtype", fix)
    if output.index is not None or output.is_normalized is not None:
        what = "is calibrated for the embedder's own vectors."
        raise RequestError(what, "output_dtype", "Ask for float, or leave index_version and normalize out.")


def _check_index(output: Output, width: int, card: ModelCard, input_type: str | None) -> None:
    """RequestError 409 if a query cannot be moved to the space of this index."""
    known = sorted({version for version, *at in card.indexes if at == [width, output.layers]})
    if output.index not in known:
        fix = f"Known at these dimensions and layers: {', '.join(known)}." if known else "Make it with `scion drift`."
        raise RequestError(f"there is no index {shortened(output.index)}.", "index_version", fix, 409, "unknown_index_version")
    if input_type == "document" or output.is_normalized is False:
        what = "moves unit vectors of queries to an earlier index."
        raise RequestError(what, "index_version", "Leave it out for documents, and normalize for queries.")


def check_tokenized(rows: TokenIds, card: ModelCard) -> None:
    """Refuses texts without tokens, and those that are too long and are not to be cut.

    Raises:
        RequestError: names the first such input.
    """
    for index, row in enumerate(rows):
        if not row:
            raise RequestError("the tokenizer leaves no token of this text.", f"input[{index}]", "Leave this text out.")
        if len(row) > card.max_length:
            what = f"has {len(row)} tokens, more than {card.max_length}."
            raise RequestError(what, f"input[{index}]", "Send a shorter text, or leave truncate out.")


def check_sendable(rows: TokenIds) -> None:
    """Refuses to give out token ids that would not have the vectors of their texts.

    Raises:
        RequestError: not all tokens of a row are pooled, which its ids do not say.
    """
    if any(getattr(row, "skip", 0) for row in rows):
        what = "not all tokens of such a text are pooled, which token ids do not say."
        raise RequestError(what, "input_type", "Send the texts themselves to /v1/embeddings.")


def read_object(body: bytes) -> dict[str, Any]:
    """The body parsed as a JSON object; RequestError if it is anything else."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON ({error}).", "", 'Send {"model": ..., "input": ...}.') from error
    if not isinstance(content, dict):
        raise RequestError(f"the body must be an object, got {kind_of(content)}.", "", 'Send {"model": ..., "input": ...}.')
    return content


def check_keys(content: dict[str, Any], known: Sequence[str]) -> None:
    """RequestError for a key that is not known: to ignore it would answer another question than the one that was asked."""
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            fix = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise RequestError("is not known.", key[:_SHORT], fix, 400, "unknown_parameter")


def _number(content: dict[str, Any], key: str, offered: tuple[int, ...]) -> int | None:
    """The requested number, None for the model's default; RequestError if the model does not offer it."""
    value = content.get(key)
    if value is None:
        return None
    fix = f"Ask for one of {', '.join(map(str, offered))}." if offered else "Leave it out."
    if type(value) is not int:  # not isinstance: True is an int
        raise RequestError(f"must be a whole number, got {kind_of(value)}.", key, fix)
    if value not in offered:
        raise RequestError(f"this model does not offer {value}.", key, fix)
    return value


def _one_of(content: dict[str, Any], key: str, offered: tuple[str, ...]) -> str:
    """The requested value, the first one if there is none."""
    value = content.get(key)
    if value is None:
        return offered[0]
    if value not in offered:
        raise RequestError(f"{shortened(value)} is not known.", key, f"Ask for {' or '.join(map(repr, offered))}.")
    return str(value)


def truncations(card: ModelCard) -> tuple[str, ...]:
    """What `truncate` may be: where a text that is too long is cut; `none` refuses it."""
    return ("end", "none") if card.has_template else ("end", "start", "none")


def output_dtypes(card: ModelCard) -> tuple[str, ...]:
    """What `output_dtype` may be, at some width and depth."""
    return tuple(dtype for dtype in DTYPES if dtype not in BYTES or card.calibrated)


def input_types(card: ModelCard) -> tuple[str, ...]:
    """What `input_type` may be."""
    return tuple(dict.fromkeys((*SIDES, *card.prompts)))


def _input_type(content: dict[str, Any], card: ModelCard, has_texts: bool) -> str | None:
    """The requested prompt; RequestError if there is none of this name, or no text in front of which it could stand."""
    names = {key: content[key] for key in ("input_type", "prompt_name") if content.get(key) is not None}
    offered = ", ".join(input_types(card))
    for key, name in names.items():
        if name not in input_types(card):
            raise RequestError(f"{shortened(name)} is not known.", key, f"Ask for one of {offered}, or leave it out.")
        if not has_texts:
            raise RequestError("a list of token ids has its prompt already.", key, "Leave it out, or send texts.")
    if len(set(names.values())) == 2:
        raise RequestError("names another prompt than input_type.", "prompt_name", "Leave one of them out.")
    return next(iter(names.values()), None)


def _inputs(inputs: Any, card: ModelCard, max_inputs: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Texts and lists of token ids; a single text or list counts as a list of one."""
    if isinstance(inputs, str):
        return (_text(inputs, "input"),), ()
    fix = "Send a text, a list of texts, a list of token ids, or a list of such lists."
    if not isinstance(inputs, list):
        what = "is missing." if inputs is None else f"must be a string or a list, got {kind_of(inputs)}."
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
            alike = f" like input[0], a {kind_of(inputs[0])}" if isinstance(inputs[0], str | list) else ""
            raise RequestError(f"is a {kind_of(entry)}, must be a text or a list of token ids{alike}.", f"input[{index}]", fix)
    if kind is str:
        return tuple(_text(text, f"input[{index}]") for index, text in enumerate(inputs)), ()
    return (), tuple(_row(row, f"input[{index}]", card) for index, row in enumerate(inputs))


def _text(text: str, where: str) -> str:
    """The input text unchanged; RequestError if it is empty. `where` names it in the error."""
    if not text:
        raise RequestError("is an empty string.", where, "Leave it out, or send a text of at least one character.")
    return text


def _row(row: list[Any], where: str, card: ModelCard) -> tuple[int, ...]:
    """The input's token ids as a tuple; RequestError if there are none, too many, or others than those of this model."""
    if not card.takes_ids:
        raise RequestError("this model pools a part of the tokens, which ids do not say.", where, "Send the text itself.")
    if not row:
        raise RequestError("is an empty list of token ids.", where, "Leave it out, or send at least one id.")
    if len(row) > card.max_length:
        what = f"has {len(row)} token ids, more than {card.max_length}."
        raise RequestError(what, where, "Send fewer, or the text itself, which is then cut.")
    for index, token in enumerate(row):
        if type(token) is not int:
            raise RequestError(f"is a {kind_of(token)}, must be a token id.", f"{where}[{index}]", "Do not mix kinds.")
        if not 0 <= token < card.vocabulary:
            what = f"token id {token} is not within 0 and {card.vocabulary - 1}."
            raise RequestError(what, f"{where}[{index}]", "Send ids of this model's own tokenizer, or the text itself.")
    begins, ends = row[: len(card.prefix)] == list(card.prefix), row[len(row) - len(card.suffix) :] == list(card.suffix)
    if not (begins and ends):
        what = f"does not begin with {list(card.prefix)} and end with {list(card.suffix)}, this model's special tokens."
        fix = "Send the text itself, or ids from /tokenize; langchain sends texts with check_embedding_ctx_length=False."
        raise RequestError(what, where, fix, 400, "other_tokenizer")
    return tuple(row)


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    kinds = {str: "string", list: "list", dict: "object", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else kinds[type(value)]


def shortened(value: Any) -> str:
    """A value, shortened for a message."""
    if isinstance(value, list | dict):
        return f"a {kind_of(value)}"
    text = orjson.dumps(value).decode()
    return text if len(text) <= _SHORT else text[:_SHORT] + "..."
