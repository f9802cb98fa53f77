"""The address that a server listens on."""

import errno
import socket

from data_pipeline.errors import ClusterError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; at a free port for 0.

    Raises:
        ClusterError: the port is in use, or the address is not this machine's.
    """
    # The protocol is named, because asyncio sends small answers at once only where it is.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
