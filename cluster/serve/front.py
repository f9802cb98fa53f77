"""The HTTP front: routes, limits and errors around a tokenizer and an encoder. No Ray."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.serve import protocol
from cluster.serve.batching import Vectors
from cluster.serve.config import ServeConfig
from cluster.serve.protocol import EmbeddingRequest, ModelCard, RequestError, TokenIds

_log = logging.getLogger("scion.serve")
_LARGE = 8192
"""Bytes of a body from which on parsing it would keep other requests waiting longer than a thread takes to start."""
_BODY_SECONDS = 30.0
"""Time for a client to send a body."""
_PATIENCE_SECONDS = 0.05
"""Time after which the front begins to watch whether the client is still there."""
_Result = TypeVar("_Result")


class Model(Protocol):
    """The model behind the front."""

    card: ModelCard

    def tokenize(self, texts: Sequence[str], prompt_name: str | None, /) -> TokenIds:
        """Token ids of texts with the named prompt."""
        ...

    async def encode(self, rows: TokenIds, dimensions: int | None, /) -> Vectors:
        """Vectors of checked token ids, cut to the given width."""
        ...


class Front:
    """Checks, tokenizes and encodes requests, and answers them. Handles all errors of a request."""

    def __init__(self, config: ServeConfig, model: Model) -> None:
        self._config, self._model = config, model
        self._ongoing = 0

    def api(self) -> Starlette:
        """The routes. Their errors have OpenAI's format."""
        routes = [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
        ]
        handlers = {RequestError: _error_response, HTTPException: _no_route}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _embeddings(self, request: Request) -> Response:
        """Handles `POST /v1/embeddings`; RequestError 503 if too many requests are ongoing."""
        body = await _read_body(request, self._config.max_body_bytes)
        if self._ongoing >= self._config.max_queued_requests:
            raise RequestError("the server is busy.", "", "Send the request again in a second.", 503, "overloaded")
        self._ongoing += 1  # only now: a client that sends slowly takes no place
        try:
            return _json(await self._answer(body, request))
        finally:
            self._ongoing -= 1

    async def _models(self, request: Request) -> Response:
        return _json(orjson.dumps(protocol.models_body(self._model.card)))

    async def _health(self, request: Request) -> Response:
        return _json(b'{"status":"ok"}')  # answered by the process that holds the model, once it is loaded

    async def _answer(self, body: bytes, request: Request) -> bytes:
        """The JSON body of the response to a request body; logs any error of the model and turns it into RequestError 500."""
        try:
            asked, rows = await _call(self._check, body, is_large=len(body) > _LARGE)
            vectors = await _unless_gone(self._model.encode(rows, asked.dimensions), request)
            is_large = vectors.nbytes > _LARGE
            return await _call(protocol.response_body, vectors, rows, asked, self._model.card, is_large=is_large)
        except (RequestError, ClientDisconnect):
            raise
        except Exception as error:  # any error of the model
            _log.error("the embedder failed on a request", exc_info=error)
            what = "the embedder failed on this request."
            raise RequestError(what, "", "The server's log has the cause.", 500, "internal_error") from error

    def _check(self, body: bytes) -> tuple[EmbeddingRequest, TokenIds]:
        asked = protocol.parse_request(body, self._model.card, self._config.max_inputs)
        rows: TokenIds = self._model.tokenize(asked.texts, asked.input_type) if asked.texts else asked.token_ids
        protocol.check_tokenized(rows)
        return asked, rows


async def _call(function: Callable[..., _Result], *arguments: object, is_large: bool) -> _Result:
    """Calls a function; in a thread if its input is large, since it would keep other requests waiting."""
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)


async def _unless_gone(vectors: Awaitable[Vectors], request: Request) -> Vectors:
    """The vectors; cancels their computation when the client closes its connection.

    Raises:
        ClientDisconnect: it did.
    """
    encoding = asyncio.ensure_future(vectors)
    done, _ = await asyncio.wait([encoding], timeout=_PATIENCE_SECONDS)
    if not done:
        leaving = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait([encoding, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not encoding.done():
                encoding.cancel()
        if encoding.cancelled() or not encoding.done():
            raise ClientDisconnect
    return encoding.result()


async def _disconnect(request: Request) -> None:
    """Returns when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, limit: int) -> bytes:
    """The request's body, read as it arrives; RequestError 413 as soon as it has more than `limit` bytes, 408 if it is slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    fix = "Send fewer inputs in a request."
                    raise RequestError(f"the body has more than {limit:,} bytes.", "", fix, 413, "request_too_large")
    except TimeoutError as error:
        what = f"the body did not arrive within {_BODY_SECONDS:g} s."
        raise RequestError(what, "", "Send the request again.", 408, "request_timeout") from error
    return bytes(body)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


async def _error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json(orjson.dumps(error.body()), error.status, {"Retry-After": "1"} if error.status == 503 else None)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail}."
    fix = "Known: POST /v1/embeddings, GET /v1/models, GET /health."
    code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status_code)
    return await _error_response(request, RequestError(what, "", fix, error.status_code, code))
