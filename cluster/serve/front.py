"""The HTTP front: routes, limits and errors around a tokenizer and an encoder. No Ray."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from cluster.serve import protocol
from cluster.serve.batching import Vectors
from cluster.serve.config import ServeConfig
from cluster.serve.protocol import EmbeddingRequest, ModelCard, RequestError, TokenIds

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The model behind the front."""

    card: ModelCard
    tokenize: Callable[[Sequence[str], str | None], TokenIds]
    """Token ids of texts with the named prompt."""
    encode: Callable[[TokenIds, int | None], Awaitable[Vectors]]
    """Vectors of checked token ids, cut to the given width."""


class Front:
    """Checks, tokenizes and encodes requests, and answers them. Handles all errors of a request."""

    def __init__(self, config: ServeConfig, backend: Backend) -> None:
        self._config, self._backend = config, backend
        self._ongoing = 0

    def api(self) -> FastAPI:
        """The routes. Their errors have OpenAI's format."""
        api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        api.add_api_route("/v1/embeddings", self._embeddings, methods=["POST"])
        api.add_api_route("/v1/models", self._models, methods=["GET"])
        api.add_api_route("/health", self._health, methods=["GET"])
        api.exception_handler(RequestError)(_error_response)
        api.exception_handler(HTTPException)(_no_route)
        return api

    async def _embeddings(self, request: Request) -> Response:
        """Handles `POST /v1/embeddings`: the JSON response; RequestError 503 if too many requests are ongoing."""
        if self._ongoing >= self._config.max_queued_requests:
            raise RequestError("the server is busy.", "", "Send the request again in a second.", 503, "overloaded")
        self._ongoing += 1
        try:
            body = await _read_body(request, self._config.max_body_bytes)
            return Response(await self._answer(body), media_type="application/json")
        finally:
            self._ongoing -= 1

    async def _models(self) -> dict[str, Any]:
        return protocol.models_body(self._backend.card)

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}  # answered by the process that holds the model, once it is loaded

    async def _answer(self, body: bytes) -> bytes:
        """The JSON body of the response to a request body; logs any error of the model and turns it into RequestError 500."""
        try:
            # In threads, because parsing a large body would block other requests for too long.
            request, rows = await asyncio.to_thread(self._check, body)
            vectors = await self._backend.encode(rows, request.dimensions)
            return await asyncio.to_thread(protocol.response_body, vectors, rows, request, self._backend.card)
        except RequestError:
            raise
        except Exception as error:  # any error of the model
            _log.error("the embedder failed on a request", exc_info=error)
            what = "the embedder failed on this request."
            raise RequestError(what, "", "The server's log has the cause.", 500, "internal_error") from error

    def _check(self, body: bytes) -> tuple[EmbeddingRequest, TokenIds]:
        request = protocol.parse_request(body, self._backend.card, self._config.max_inputs)
        rows: TokenIds = self._backend.tokenize(request.texts, request.input_type) if request.texts else request.token_ids
        protocol.check_tokenized(rows)
        return request, rows


async def _read_body(request: Request, limit: int) -> bytes:
    """The request's body, read as it arrives; RequestError 413 as soon as it has more than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            fix = "Send fewer inputs in a request."
            raise RequestError(f"the body has more than {limit:,} bytes.", "", fix, 413, "request_too_large")
    return bytes(body)


async def _error_response(request: Request, error: RequestError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return Response(json.dumps(error.body()), error.status, headers, "application/json")


async def _no_route(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path}: {error.detail}."
    fix = "Known: POST /v1/embeddings, GET /v1/models, GET /health."
    code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status_code)
    return await _error_response(request, RequestError(what, "", fix, error.status_code, code))
