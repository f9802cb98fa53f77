"""The Ray Serve application: replicas of an embedder, each with its own HTTP front.

One deployment, not an ingress in front of model replicas: measured side by side, the hop between two processes cost more
than it saved, and both had to load torch. The tokenizer and torch release the GIL, so the front does not block the model.
The price: a single replica answers a request, however large it is.
"""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import ray
import torch
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from ray import serve

from cluster.serve import batching
from cluster.serve.batching import Piece, Vectors
from cluster.serve.config import ServeConfig
from cluster.serve.front import Backend, Front
from cluster.serve.protocol import ModelCard, TokenIds
from data_pipeline.errors import ClusterError, ConfigError
from trainer.embedder import Embedder

_APP = "embedder"
_REPORT_SECONDS = 0.3
"""Time within which Ray reports a failed task."""
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_log = logging.getLogger("ray.serve")


class EmbedderReplica:
    """A replica of the model. Encodes all waiting rows together whenever the model is free."""

    def __init__(self, config: ServeConfig) -> None:
        # One thread per reserved core: with torch's default every replica would use all cores of the machine.
        torch.set_num_threads(config.cpus_per_replica)
        self._embedder = embedder = Embedder.load(config.model)
        if config.gpu:
            embedder.model.to("cuda")
        embedder.encode_ids([[0]])  # a warm-up: the first request does not pay for starting threads and kernels
        # Serve refuses an item above the batch size, even alone: a batch has room for the longest row.
        self._budget = max(config.max_batch_tokens, embedder.spec.max_length)
        self._encode_batch.set_max_batch_size(self._budget)
        self._encode_batch.set_batch_wait_timeout_s(config.batch_wait_s)
        self._free = asyncio.Event()
        self._free.set()
        backend = Backend(card=_card(config.name, embedder), tokenize=embedder.tokenize, encode=self._encode)
        self._front = Front(config, backend)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._front.api()

    async def _encode(self, rows: TokenIds, dimensions: int | None) -> Vectors:
        pieces = batching.pieces(rows, dimensions, self._budget)
        return np.concatenate(await asyncio.gather(*[self._encode_piece(piece) for piece in pieces]))

    async def _encode_piece(self, piece: Piece) -> Vectors:
        """The vectors of a piece, float32 [n, A], encoded in a batch with other waiting pieces; raises the model's error."""
        # Serve closes a batch on a timer, also while the model is busy, and would then run a queue of tiny batches.
        # Pieces that wait until the model is free join one batch.
        await self._free.wait()
        result: Vectors | Exception = await self._encode_batch(piece)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch(batch_size_fn=batching.cost, max_concurrent_batches=1)
    async def _encode_batch(self, batch: list[Piece]) -> list[Vectors | Exception]:
        self._free.clear()
        try:
            return await asyncio.to_thread(batching.encode_batch, batch, self._embedder.encode_ids)
        finally:
            self._free.set()


def build_app(config: ServeConfig) -> serve.Application:
    """The application for `serve.run`. Host and port are settings of Serve's proxy, not of the application.

    Raises:
        ConfigError: no model is named.
    """
    if not config.model:
        raise ConfigError("no model is named.", "serve.model", "Name an embedder's folder, URI or hub name.")
    if os.path.isdir(config.model):
        config = replace(config, model=os.path.abspath(config.model))  # a replica may start in another folder
    deployment = serve.deployment(
        serve.ingress()(EmbedderReplica),
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": int(config.gpu)},
        max_ongoing_requests=1 << 20,  # the front limits requests, with errors in OpenAI's format
        graceful_shutdown_wait_loop_s=0.2,  # interval of the check that the last answers are sent
        max_constructor_retry_count=1,  # a model that cannot be loaded is reported at once
    )
    return deployment.bind(config)


def app(args: dict[str, Any]) -> serve.Application:
    """`build_app` for `serve run cluster.serve.app:app model=...` and for the `args:` of a RayService.

    Raises:
        ConfigError: an unknown setting, or an invalid value.
    """
    settings = [setting.name for setting in fields(ServeConfig)]
    for key in args:
        if key not in settings:
            raise ConfigError("there is no such setting.", f"args.{key}", f"Known: {', '.join(settings)}.")
    try:  # from a command line every value is a string
        return build_app(TypeAdapter(ServeConfig).validate_python(args))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['msg']}, got {first['input']!r}.", f"args.{first['loc'][0]}") from error


@contextmanager
def serve_locally(config: ServeConfig) -> Iterator[str]:
    """Serves on the initialised Ray cluster while the block runs. Yields the base URL for OpenAI's clients.

    Raises:
        ClusterError: no cluster, one that is too small or serves something already, a port in use, or a model that does not
            load.
        ConfigError: no model is named.
    """
    application = build_app(config)
    _check_cluster_can_serve(config)
    port = _free_port(config.host, config.port)
    with _quiet():
        try:
            http = {"host": config.host, "port": port}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=_QUIET)
            _start(application, config.model)
            host = "127.0.0.1" if config.host == "0.0.0.0" else config.host
            yield f"http://{host}:{port}/v1"
        finally:
            _shut_down()


def _shut_down() -> None:
    """Shuts Serve down quietly: it kills its controller while that shuts down, which Ray would report as a failed task."""
    worker = ray._private.worker
    worker._worker_logs_enabled = False
    try:
        serve.shutdown()
        time.sleep(_REPORT_SECONDS)
    finally:
        worker._worker_logs_enabled = True


def _start(application: serve.Application, model: str) -> None:
    """Deploys the application on Ray Serve and waits until it is ready; ClusterError with the reason if it fails."""
    try:
        serve.run(application, name=_APP, logging_config=_QUIET)
    except RuntimeError as error:
        # The status holds a traceback whose last line is the exception: "data_pipeline.errors.ModelError: ...".
        status = serve.status().applications.get(_APP)
        messages = [deployment.message for deployment in status.deployments.values()] if status else []
        reason = (messages or [str(error)])[0].strip().splitlines()[-1]
        _, ours, message = reason.rpartition("data_pipeline.errors.ModelError: ")
        raise ClusterError(f"the server did not start: {message if ours else reason}", f"serve.model={model}") from error


def _check_cluster_can_serve(config: ServeConfig) -> None:
    """Checks that Ray is initialised, serves nothing yet, and has the CPUs and GPUs of all replicas.

    Raises:
        ClusterError: one of these does not hold.
    """
    if not ray.is_initialized():
        raise ClusterError("Ray is not initialised.", "serve", "Call ray.init() first, or use `scion serve`.")
    if serve.status().proxies:
        fix = "Stop that one with `serve shutdown`, or deploy next to it with `serve deploy`."
        raise ClusterError("this Ray cluster serves something already.", "serve", fix)
    needed = {"CPU": config.replicas * config.cpus_per_replica, "GPU": config.replicas * config.gpu}
    have = ray.cluster_resources()
    for kind, count in needed.items():
        if have.get(kind, 0) < count:
            what = f"{config.replicas} copies of the model need {count} {kind}s, the cluster has {have.get(kind, 0):g}."
            raise ClusterError(what, "serve.replicas", "Lower it, or add nodes.")  # Serve itself would wait for ever


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Checked here, because Serve's proxy would share its port with another proxy."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just released is free
        try:
            probe.bind((host, port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            what = f"port {port} is in use." if in_use else f"cannot listen on {host} port {port} ({error.strerror})."
            fix = "Choose another with serve.port=, or 0 for a free one." if in_use else "Change serve.host= or serve.port=."
            raise ClusterError(what, "serve.port" if in_use else "serve.host", fix) from error
        return int(probe.getsockname()[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Serve's progress lines in this process; its actors have log settings of their own."""
    level = _log.level
    _log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _log.setLevel(level)


def _card(name: str, embedder: Embedder) -> ModelCard:
    vocabulary = min(len(embedder.tokenizer), int(embedder.model.config.vocab_size))
    length = embedder.spec.max_length
    prompts = tuple(embedder.spec.prompts)
    return ModelCard(name=name, dimensions=embedder.dimensions, max_length=length, vocabulary=vocabulary, prompts=prompts)
