"""A lease on a folder, so that one run at a time writes there, also after the one before it died.

The lease is a file with a token and a time that its holder renews. Whoever finds one that was not renewed for a while, or
whose process is gone from this machine, takes it over with a token of its own. A holder that was only slow finds out when it
next asks `check`, which it does before all that counts: the token is a fence. Two that both believe to hold it, because one
wrote long after it had looked, are told apart there too.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.artifacts import storage
from data_pipeline.errors import ArtifactError

RENEW_SECONDS = 10.0
TTL_SECONDS = 60.0
"""A lease that was not renewed for so long is nobody's: several times the clock skew between machines."""
_WATCH_SECONDS = 3 * RENEW_SECONDS
"""How long a lease is watched whose time, by the clock here, has passed or is yet to come."""
_SETTLE_SECONDS = 0.5
"""Two that write to an object store at the same moment see within this who was last; on a disk within a fifth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    token: str
    host: str
    pid: int
    renewed: float
    """Seconds since 1970."""
    space: str | None = None
    """What `pid` is a number in: containers may share a host's name, and each numbers its processes from 1."""

    def alive(self, uri: str) -> bool:
        """Whether it still holds the lease file `uri`. Of a clock on another machine nothing is known but that it goes on."""
        here = self.host == socket.gethostname() and self.space in (None, _space())
        if here and not os.path.exists(f"/proc/{self.pid}"):
            return False
        # A clock may leap, and a machine may sleep: what lives goes on renewing.
        return abs(time.time() - self.renewed) <= TTL_SECONDS or self._renews(uri)

    def _renews(self, uri: str) -> bool:
        end = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, _WATCH_SECONDS))
            if (found := _read(uri)) != self:
                return found is not None
        return False


@dataclass(frozen=True, slots=True)
class Lease:
    """One that is held: sent to whoever writes on the holder's behalf."""

    uri: str
    token: str

    def check(self) -> None:
        """Whether it is still held.

        Raises:
            ArtifactError: somebody else has taken it over.
        """
        found = _read(self.uri)
        if found is None or found.token != self.token:
            raise ArtifactError(
                f"another run has taken over{f' ({found.host}, process {found.pid})' if found else ''}.",
                self.uri,
                "This one ends; what the other writes is not touched.",
            )


@contextmanager
def hold(uri: str) -> Iterator[Lease]:
    """Holds the lease file `uri` while the block runs.

    Raises:
        ArtifactError: somebody else holds it.
    """
    found = _read(uri)
    if found is not None and found.alive(uri):
        raise ArtifactError(
            f"another run is writing here ({found.host}, process {found.pid}, "
            f"seen {max(0.0, time.time() - found.renewed):.0f} s ago).",
            uri.rpartition("/")[0],
            f"Wait for it, stop it, or choose another output=; one that died is taken over after {TTL_SECONDS:.0f} s.",
        )
    lease = Lease(uri, secrets.token_hex(8))
    _write(lease)
    time.sleep(_SETTLE_SECONDS / (5 if storage.is_local(uri) else 1))
    lease.check()
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, ended), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # what ended the block is of more interest; the lease lapses by itself
            found = _read(uri)
            if found is not None and found.token == lease.token:
                storage.remove(uri)


def is_held(uri: str) -> bool:
    """Whether somebody holds the lease file `uri`."""
    found = _read(uri)
    return found is not None and found.alive(uri)


def _renew(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        try:
            lease.check()
            _write(lease)
        except ArtifactError:
            return
        except OSError:
            continue  # storage that is away for a moment; the lease lapses if it stays away


def _write(lease: Lease) -> None:
    here: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "space": _space()}
    holder = _Holder(token=lease.token, renewed=time.time(), **here)
    storage.write_bytes(lease.uri, json.dumps(asdict(holder)).encode())


def _space() -> str:
    """Tells the process numbers of a machine, or of a container, from those of another."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _read(uri: str) -> _Holder | None:
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_bytes(uri))
        return _Holder(**content | {"renewed": float(content["renewed"])})
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        return None  # not a lease, or gone in between
