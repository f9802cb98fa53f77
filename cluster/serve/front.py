"""The HTTP front: routes, limits and errors around a tokenizer and an encoder. No Ray."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.serve import answers, openapi, page, protocol
from cluster.serve.answers import TextPieces
from cluster.serve.api_keys import RequireKey
from cluster.serve.batching import Vectors
from cluster.serve.config import ServeConfig
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, RequestError, TokenIds
from cluster.serve.responses import error_response, json_response

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

    def tokenize(self, asked: EmbeddingRequest, /) -> TokenIds:
        """Token ids of the texts of a request."""
        ...

    def pieces(self, asked: EmbeddingRequest, /) -> Sequence[TextPieces]:
        """What each token of the texts of a request stands for."""
        ...

    async def encode(self, rows: TokenIds, output: Output, /) -> Vectors:
        """Vectors of checked token ids."""
        ...


class Front:
    """Checks, tokenizes and encodes requests, and answers them. Handles all errors of a request."""

    def __init__(self, config: ServeConfig, model: Model, keys: Sequence[str] = ()) -> None:
        """
        Args:
            keys: of which a request needs one, if there are any.
        """
        self._config, self._model, self._keys = config, model, keys
        self._ongoing = 0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="large")
        """For large bodies, few at a time: one of a megabyte takes hundreds while it is tokenized."""

    def api(self) -> Starlette:
        """The routes. Their errors have OpenAI's format."""
        routes = [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._one_model, methods=["GET"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._health, methods=["GET"]),
            *page.routes(),
        ]
        layers = []
        if self._config.cors_origins:
            origins = list(self._config.cors_origins)
            layers.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
        if self._keys:
            layers.append(Middleware(RequireKey, keys=self._keys))
        handlers = {RequestError: _refuse, HTTPException: _no_route, ClientDisconnect: _nobody, Exception: _fail}
        return Starlette(routes=routes, middleware=layers, exception_handlers=handlers)

    async def _embeddings(self, request: Request) -> Response:
        """Handles `POST /v1/embeddings`."""
        with _not_given_up():
            body = await _read_body(request, self._config.max_body_bytes)
            with self._place():
                return json_response(await self._answer(body, request))

    async def _tokenize(self, request: Request) -> Response:
        """Handles `POST /tokenize`: the ids that `/v1/embeddings` makes of the texts of the same body."""
        with _not_given_up():
            body = await _read_body(request, self._config.max_body_bytes)
            with self._place():
                asked, rows = await self._call(self._check, body, protocol.TOKENIZE_KEYS, size=len(body))
                protocol.check_sendable(rows)
                # In a thread: the first one may load the source's tokenizer.
                pieces = await self._call(self._model.pieces, asked, size=sys.maxsize) if asked.has_pieces else ()
        return json_response(answers.tokens(rows, self._model.card, pieces))

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among the ongoing requests; RequestError 429 if there is none.

        A request takes it when its body is there: a client that sends slowly takes none.
        """
        if self._ongoing >= self._config.max_queued_requests:
            raise RequestError("the server is busy.", "", "Send the request again in a second.", 429, "overloaded")
        self._ongoing += 1
        try:
            yield
        finally:
            self._ongoing -= 1

    async def _models(self, request: Request) -> Response:
        return json_response(answers.models(self._model.card, self._config))

    async def _one_model(self, request: Request) -> Response:
        protocol.check_model(request.path_params["name"], self._model.card)
        return json_response(answers.model(self._model.card, self._config))

    async def _openapi(self, request: Request) -> Response:
        return json_response(orjson.dumps(openapi.document(self._model.card, self._config)))

    async def _health(self, request: Request) -> Response:
        return json_response(b'{"status":"ok"}')  # answered by the process that holds the model, once it is loaded and warm

    async def _answer(self, body: bytes, request: Request) -> bytes:
        """The JSON body of the response to a request body; logs any error of the model and turns it into RequestError 500."""
        try:
            asked, rows = await self._call(self._check, body, size=len(body))
            vectors = await _unless_gone(self._model.encode(rows, asked.output), request)
            return await self._call(answers.embeddings, vectors, rows, asked, self._model.card, size=vectors.nbytes)
        except (RequestError, ClientDisconnect):
            raise
        except Exception as error:  # any error of the model
            _log.error("the embedder failed on a request", exc_info=error)
            what = "the embedder failed on this request."
            raise RequestError(what, "", "The server's log has the cause.", 500, "internal_error") from error

    async def _call(self, function: Callable[..., _Result], *arguments: object, size: int) -> _Result:
        """Calls a function; in a thread if its input of so many bytes is large: it would keep other requests waiting."""
        if size <= _LARGE:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _check(self, body: bytes, keys: tuple[str, ...] = protocol.KEYS) -> tuple[EmbeddingRequest, TokenIds]:
        asked = protocol.parse_request(body, self._model.card, self._config.max_inputs, keys)
        rows: TokenIds = self._model.tokenize(asked) if asked.texts else asked.token_ids
        protocol.check_tokenized(rows, self._model.card)
        return asked, rows


@contextmanager
def _not_given_up() -> Iterator[None]:
    """RequestError 503 where the block is cancelled: the time in which an ending server answers is over."""
    try:
        yield
    except asyncio.CancelledError as error:
        fix = "Send the request to another, or again later."
        raise RequestError("the server ends.", "", fix, 503, "shutting_down") from error


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


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    """The answer to an unknown path or method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail}."
    fix = (
        "Known: POST /v1/embeddings, POST /tokenize, GET /v1/models, GET /openapi.json, GET /health, and pages at / and /docs."
    )
    code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status_code)
    response = error_response(RequestError(what, "", fix, error.status_code, code))
    response.headers.update(error.headers or {})  # the methods that are allowed
    return response


async def _nobody(request: Request, error: Exception) -> Response:
    """Ends a request whose client has left; the answer goes nowhere."""
    return Response(status_code=499)


async def _fail(request: Request, error: Exception) -> Response:
    """The answer to a request on which the server's own code failed; Starlette raises the error again, into the log."""
    what, fix = "the server failed on this request.", "The server's log has the cause."
    return error_response(RequestError(what, "", fix, 500, "internal_error"))
