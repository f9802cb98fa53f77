"""Whether a machine answers, before a client tries for minutes."""

import socket

from data_pipeline.errors import ClusterError

_SECONDS = 10


def check_reachable(address: str, where: str, fix: str) -> None:
    """Refuses HOST:PORT without an answer at once; other addresses, such as `auto`, are not tried.

    Raises:
        ClusterError: nothing answers; says `where`, and what to do.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no answer from there ({getattr(error, 'strerror', None) or error}).", where, fix) from error
