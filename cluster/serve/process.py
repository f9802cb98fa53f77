"""Serves in this process, without Ray: an event loop in one thread, the model in another."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop

from cluster.serve.address import listen
from cluster.serve.api_keys import read_keys
from cluster.serve.config import ServeConfig, require_model
from cluster.serve.front import Front
from cluster.serve.model import ServedModel, usable_cores

_DRAIN_SECONDS = 25
"""Time for accepted requests to be answered; Kubernetes kills a pod 30 s after it asks it to end."""
_IDLE_SECONDS = 75
"""Time after which an idle connection is closed."""
_FAREWELL_SECONDS = 0.5
"""Time in which answers ask clients to leave. A connection that is closed without a word may have a request on its way."""


@contextmanager
def serve_in_process(config: ServeConfig) -> Iterator[str]:
    """Serves while the block runs. Yields the base URL for OpenAI's clients. At the end, accepted requests are answered.

    Raises:
        ClusterError: the port is in use, or the address is not this machine's.
        ModelError: the model cannot be loaded.
        ConfigError: no model is named.
    """
    require_model(config)
    listener = listen(config.host, config.port)
    model = ServedModel(config, config.cpus_per_replica or usable_cores())
    front = Front(config, model, read_keys())
    settings = uvicorn.Config(
        front.api(),
        access_log=False,
        log_level="warning",
        lifespan="off",
        http="httptools",
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=_run, args=(server, listener), name="front")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        host, port = listener.getsockname()
        yield f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/v1"
    finally:
        front.is_draining = True
        time.sleep(_FAREWELL_SECONDS)
        server.should_exit = True
        thread.join()
        model.close()


def _run(server: uvicorn.Server, listener: object) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve(sockets=[listener]))  # type: ignore[list-item]
