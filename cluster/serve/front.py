"""The HTTP front: routes, limits and errors around a tokenizer and an encoder. No Ray."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import orjson
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.serve import answers, openapi, page, protocol, rerank
from cluster.serve.api_keys import RequireKey
from cluster.serve.batching import Vectors
from cluster.serve.compression import unpacked
from cluster.serve.config import ServeConfig
from cluster.serve.metrics import Prometheus, Recorder
from cluster.serve.models import Model, Shelf
from cluster.serve.observe import Observe
from cluster.serve.protocol import EmbeddingRequest, ModelCard, RequestError, TokenIds
from cluster.serve.request_record import current
from cluster.serve.rerank import RerankRequest
from cluster.serve.responses import error_response, json_response
from cluster.serve.tracing import Tracing

_log = logging.getLogger("scion.serve")
_LARGE = 8192
"""Bytes of a body from which on parsing it would keep other requests waiting longer than a thread takes to start."""
_COMPRESSED = 1024
"""Bytes of an answer from which on it is compressed."""
_BODY_SECONDS = 30.0
"""Time for a client to send a body."""
_PATIENCE_SECONDS = 0.05
"""Time after which the front begins to watch whether the client is still there."""
_Result = TypeVar("_Result")
_Asked = TypeVar("_Asked", EmbeddingRequest, RerankRequest)
_Check = Callable[[bytes], tuple[Model, _Asked, TokenIds]]
"""Checks a body: the model that it asks for, the request, and the token ids of its texts."""
_Write = Callable[[Vectors, TokenIds, _Asked, ModelCard], bytes]
"""Writes an answer's JSON body."""


class Front:
    """Checks, tokenizes and encodes requests, and answers them. Handles all errors of a request."""

    def __init__(
        self,
        config: ServeConfig,
        shelf: Shelf,
        keys: Sequence[str] = (),
        recorder: Recorder | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """
        Args:
            keys: of which a request needs one, if there are any.
            recorder: of the metrics; one with a page at /metrics when not given.
        """
        self._config, self._shelf, self._keys, self._tracing = config, shelf, keys, tracing
        self._recorder = recorder or Prometheus()
        self._ongoing = 0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="large")
        """For large bodies, few at a time: one of a megabyte takes hundreds while it is tokenized."""
        self._piece_thread = ThreadPoolExecutor(1, thread_name_prefix="pieces")
        """The first request for pieces may download the source's tokenizer, for which no large body is to wait."""

    def api(self) -> Starlette:
        """The routes. Their errors have OpenAI's format."""
        routes = [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._one_model, methods=["GET"]),
            Route("/v1/rerank", self._rerank, methods=["POST"]),
            Route("/v2/rerank", self._rerank, methods=["POST"]),  # where Cohere's client asks
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/info", self._info, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._health, methods=["GET"]),
            *page.routes(),
        ]
        if isinstance(self._recorder, Prometheus):
            routes.append(Route("/metrics", self._metrics, methods=["GET"]))
        paths = [route.path for route in routes]
        layers = [Middleware(Observe, paths=paths, recorder=self._recorder, tracing=self._tracing)]
        if self._config.gzip:
            layers.append(Middleware(GZipMiddleware, minimum_size=_COMPRESSED, compresslevel=1))
        if self._config.cors_origins:
            origins = list(self._config.cors_origins)
            layers.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
        if self._keys:
            layers.append(Middleware(RequireKey, keys=self._keys))
        handlers = {RequestError: _refuse, HTTPException: _no_route, ClientDisconnect: _nobody, Exception: _fail}
        return Starlette(routes=routes, middleware=layers, exception_handlers=handlers)

    async def _embeddings(self, request: Request) -> Response:
        """Handles `POST /v1/embeddings`."""
        return await self._answer(request, self._check, answers.embeddings)

    async def _rerank(self, request: Request) -> Response:
        """Handles `POST /v1/rerank`."""
        return await self._answer(request, self._check_rerank, rerank.answer)

    async def _tokenize(self, request: Request) -> Response:
        """Handles `POST /tokenize`: the ids that `/v1/embeddings` makes of the texts of the same body."""
        with _not_given_up():
            body = await _read_body(request, self._config.max_body_bytes)
            with self._place():
                model, asked, rows = await self._checked(self._check_tokenize, body)
                protocol.check_sendable(rows)
                pieces: Sequence[answers.TextPieces] = ()
                if asked.has_pieces:
                    pieces = await asyncio.get_running_loop().run_in_executor(self._piece_thread, model.pieces, asked)
        return json_response(answers.tokens(rows, model.card, pieces))

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
        models = self._shelf.models
        return json_response(answers.models(models.cards, models.aliases, self._config))

    async def _one_model(self, request: Request) -> Response:
        models, name = self._shelf.models, request.path_params["name"]
        return json_response(answers.model(models.find(name).card, self._config, name if name in models.aliases else None))

    async def _openapi(self, request: Request) -> Response:
        models = self._shelf.models
        return json_response(orjson.dumps(openapi.document(models.cards, models.aliases, self._config)))

    async def _info(self, request: Request) -> Response:
        return json_response(answers.info(self._shelf.models.cards, self._config))

    async def _metrics(self, request: Request) -> Response:
        assert isinstance(self._recorder, Prometheus)
        return Response(self._recorder.page(), media_type=CONTENT_TYPE)

    async def _health(self, request: Request) -> Response:
        # Answered by the process that holds the models, once they are loaded and warm.
        is_stuck = any(model.is_stuck for model in self._shelf.models.by_name.values())
        return json_response(b'{"status":"stuck"}', 503) if is_stuck else json_response(b'{"status":"ok"}')

    async def _answer(self, request: Request, check: _Check[_Asked], write: _Write[_Asked]) -> Response:
        """The response to a request for vectors, of which `write` makes the JSON body; RequestError 500 for a model's error."""
        with _not_given_up():
            body = await _read_body(request, self._config.max_body_bytes)
            with self._place():
                return json_response(await self._encoded(request, body, check, write))

    async def _encoded(self, request: Request, body: bytes, check: _Check[_Asked], write: _Write[_Asked]) -> bytes:
        """The JSON body of the response; logs any error of the model and turns it into RequestError 500."""
        try:
            model, asked, rows = await self._checked(check, body)
            vectors = await _unless_gone(model.encode(rows, asked.output), request)
            return await self._call(write, vectors, rows, asked, model.card, size=vectors.nbytes)
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

    async def _checked(self, check: _Check[_Asked], body: bytes) -> tuple[Model, _Asked, TokenIds]:
        """The model and the request of a body, and the token ids of its texts."""
        record = current()
        record.read = perf_counter()
        model, asked, rows = await self._call(check, body, size=len(body))
        record.model = model.card.name
        record.tokenized, record.texts, record.tokens = perf_counter(), len(rows), sum(map(len, rows))
        return model, asked, rows

    def _check(self, body: bytes, keys: Sequence[str] = protocol.KEYS) -> tuple[Model, EmbeddingRequest, TokenIds]:
        content = protocol.read_object(body)
        model = self._shelf.models.find(content.get("model"))
        asked = protocol.parse_request(content, model.card, self._config.max_inputs, keys)
        rows: TokenIds = model.tokenize(asked) if asked.texts else asked.token_ids
        protocol.check_tokenized(rows, model.card)
        return model, asked, rows

    def _check_tokenize(self, body: bytes) -> tuple[Model, EmbeddingRequest, TokenIds]:
        return self._check(body, protocol.TOKENIZE_KEYS)

    def _check_rerank(self, body: bytes) -> tuple[Model, RerankRequest, TokenIds]:
        content = protocol.read_object(body)
        model = self._shelf.models.find(content.get("model"))
        asked = rerank.parse_request(content, model.card, self._config.max_inputs)
        return model, asked, rerank.tokenize(asked, model.tokenize, model.card)


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
    return unpacked(bytes(body), request.headers.get("content-encoding", "identity"), limit)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    """The answer to an unknown path or method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail}."
    posts = "POST /v1/embeddings, /v1/rerank, /tokenize"
    gets = "GET /v1/models, /info, /openapi.json, /health, /ready, /metrics"
    fix = f"Known: {posts}; {gets}; pages at / and /docs."
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
