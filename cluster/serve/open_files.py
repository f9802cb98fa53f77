"""How many connections a process can hold, since each is an open file.

Where no file is left, asyncio (Python 3.11) tries to accept the next connection again and again, with a traceback each time,
and has no time for anything else: 260 connections with 200 files wrote 90 MB of log in 14 s, and nobody was answered.
"""

import sys
from contextlib import suppress

BURST = 1024
"""Connections that may be accepted at once, before the first of them can be refused."""
_ENOUGH = 65_536


def raise_limit() -> None:
    """Lets this process open as many files as it may: by default systems let it open 1,024, and more where it asks."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit, and macOS refuses some
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """So many that files are left for a burst of others, and for a model that is loaded."""
    try:
        import resource
    except ImportError:
        return sys.maxsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files - min(files // 2, 2 * BURST)
