"""The address that a server listens on, and its URL."""

import errno
import socket

from data_pipeline.errors import ClusterError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; at a free port for 0.

    Raises:
        ClusterError: the port is in use, or the address is not this machine's.
    """
    # The protocol is named, because asyncio sends small answers at once only where it is.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is all addresses, those of IPv4 too
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just released is free
    try:
        listener.bind((host, port))
        listener.listen(2048)  # of two servers that start at once, the second one fails here
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        what = f"port {port} is in use." if in_use else f"cannot listen on {host} port {port} ({error.strerror})."
        fix = "Choose another with serve.port=, or 0 for a free one." if in_use else "Change serve.host= or serve.port=."
        raise ClusterError(what, "serve.port" if in_use else "serve.host", fix) from error
    return listener


def base_url(host: str, port: int) -> str:
    """The base URL for OpenAI's clients on this machine."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"
