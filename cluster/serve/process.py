"""Serves in this process, without Ray: an event loop in one thread, the model in another."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn
from starlette.applications import Starlette

from cluster.serve.address import base_url, listen
from cluster.serve.api_keys import read_keys
from cluster.serve.batching import Batcher
from cluster.serve.config import ServeConfig, require_model
from cluster.serve.connection import Connection
from cluster.serve.front import Front
from cluster.serve.loading import Loader
from cluster.serve.log import write_log
from cluster.serve.metrics import Prometheus
from cluster.serve.model import usable_cores
from cluster.serve.open_files import BURST, raise_limit
from cluster.serve.tracing import tracing_from_environment
from data_pipeline.errors import ClusterError

_DRAIN_SECONDS = 25
"""Time for accepted requests to be answered; Kubernetes kills a pod 30 s after it asks it to end."""
_LEAVE_SECONDS = 0.2
"""Time in which answers ask clients to leave, before idle connections are closed."""
_IDLE_SECONDS = 75
"""Time after which an idle connection is closed."""


@contextmanager
def serve_in_process(config: ServeConfig) -> Iterator[str]:
    """Serves while the block runs. Yields the base URL for OpenAI's clients. At the end, accepted requests are answered.

    Raises:
        ClusterError: the port is in use, or the address is not this machine's.
        ModelError: the model cannot be loaded.
        ConfigError: no model is named, or traces are asked for without OpenTelemetry.
    """
    require_model(config)
    keys, tracing = read_keys(), tracing_from_environment()
    write_log(config.request_log)
    raise_limit()
    loaders: list[Loader] = []
    with listen(config.host, config.port) as listener, _reloading(loaders, config):
        loader = Loader(config, config.cpus_per_replica or usable_cores(), recorder := Prometheus())
        server = uvicorn.Server(_settings(Front(config, loader.shelf, keys, recorder, tracing).api()))
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(server, listener, loop), name="front")
        thread.start()
        try:
            host, port = listener.getsockname()[:2]
            while not server.started:
                if not thread.is_alive():
                    raise ClusterError("the server ended as it started.", "serve", "Its log has the cause.")
                time.sleep(0.005)
            loaders.append(loader)
            yield base_url(host, port)
        finally:
            loaders.clear()
            _end(server, listener, loop, thread, loader.batcher)
            if tracing is not None:
                tracing.close()


@contextmanager
def _reloading(loaders: Sequence[Loader], config: ServeConfig) -> Iterator[None]:
    """Reloads models whose files have changed at SIGHUP, where the block runs in the main thread of a Unix process.

    A server that starts or ends has no loader there, and goes on: without a handler the signal would end it at once.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return

    def reload(*_: object) -> None:
        for loader in loaders:
            threading.Thread(target=loader.reload, args=(config,), name="reload", daemon=True).start()

    before = signal.signal(signal.SIGHUP, reload)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _settings(api: Starlette) -> uvicorn.Config:
    """Of uvicorn: nothing that a request does not need."""
    return uvicorn.Config(
        api,
        access_log=False,
        log_level="warning",
        lifespan="off",
        proxy_headers=False,
        http=Connection,
        ws="none",
        backlog=BURST,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


def _run(server: uvicorn.Server, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    # asyncio's own loop: uvloop, which serves 5 to 10 % more short requests, crashes if a connection outlives it.
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(server.serve(sockets=[listener]))


def _end(
    server: uvicorn.Server,
    listener: socket.socket,
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    batcher: Batcher,
) -> None:
    """Answers what is accepted, and ends the server; at a second interruption without the answers."""
    farewell = (b"connection", b"close")
    try:
        server.config.encoded_headers.append(farewell)
        server.server_state.default_headers.append(farewell)
        if server.started and thread.is_alive():
            asyncio.run_coroutine_threadsafe(_accept_the_last(server, listener), loop).result()
            time.sleep(_LEAVE_SECONDS)
        server.should_exit = True
        thread.join()
        batcher.close()
    except KeyboardInterrupt:
        server.should_exit = server.force_exit = True
        batcher.close(drops_waiting=True)
        thread.join()
        raise


async def _accept_the_last(server: uvicorn.Server, listener: socket.socket) -> None:
    """Accepts the connections that wait, and closes the listener at once: those that wait when it closes are reset."""
    asyncio.get_running_loop().remove_reader(listener)
    await asyncio.sleep(0)  # connections that are accepted get their protocols, which a closed server refuses
    waiting = []
    with suppress(OSError):  # BlockingIOError, or no more open files
        while True:
            waiting.append(listener.accept()[0])
    for one in server.servers:
        one.close()
    for connection in waiting:
        connection.setblocking(False)
        factory = partial(Connection, server.config, server.server_state, server.lifespan.state)
        await asyncio.get_running_loop().connect_accepted_socket(factory, connection)
