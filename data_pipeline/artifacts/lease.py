"""A lease on a folder: one run at a time writes there, and the next can take over from one that died.

The lease is a file with a token and a time that its holder renews. A run that finds a lease which was not renewed for a
while, or whose process no longer exists on this machine, takes it over with a token of its own. A holder that was only slow
learns this from `check`, which it calls before every write that matters: the token is a fencing token. A lease that nobody
holds is created, which one of several runs can do; `check` decides between two that both took over a dead one's.
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

from data_pipeline.artifacts import creation, storage
from data_pipeline.errors import ArtifactError

RENEW_SECONDS = 10.0
TTL_SECONDS = 60.0
"""A lease expires this long after its last renewal: several times the clock skew between machines."""
WATCH_SECONDS = 3 * RENEW_SECONDS
"""How long to watch a lease for a renewal if its time, by the clock here, is expired or in the future."""
SETTLE_SECONDS = 0.5
"""Settling time for concurrent writers to an object store; on a disk a fifth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    token: str
    host: str
    pid: int
    renewed: float
    """Seconds since 1970."""
    space: str | None = None
    """The PID namespace of `pid`: containers may share a host name, and each numbers its processes from 1."""

    def is_alive(self, uri: str) -> bool:
        """Whether it still holds the lease file `uri`. The clock of another machine may be off by any amount."""
        is_here = self.host == socket.gethostname() and self.space in (None, _pid_namespace())
        if is_here and not os.path.exists(f"/proc/{self.pid}"):
            return False
        # A clock may jump, and a machine may sleep: a live holder keeps renewing.
        return abs(time.time() - self.renewed) <= TTL_SECONDS or self._renews(uri)

    def _renews(self, uri: str) -> bool:
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCH_SECONDS))
            if (holder := _read(uri)) != self:
                return holder is not None
        return False


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was acquired; passed to workers that write on the holder's behalf."""

    uri: str
    token: str

    def check(self) -> None:
        """Checks that it is still held.

        Raises:
            ArtifactError: another run has taken it over.
        """
        holder = _read(self.uri)
        if holder is None or holder.token != self.token:
            raise ArtifactError(
                f"another run has taken over{f' ({holder.host}, process {holder.pid})' if holder else ''}.",
                self.uri,
                "This run ends and leaves the files of the other alone.",
            )


@contextmanager
def hold(uri: str) -> Iterator[Lease]:
    """Holds the lease file `uri` while the block runs.

    Raises:
        ArtifactError: another run holds it.
    """
    lease = Lease(uri, secrets.token_hex(8))
    former = _read(uri)
    _refuse_alive(former, uri)  # also where the store overwrites, because it does not know conditional requests
    if former is not None or not creation.create(uri, _content(lease)):
        if former is None:
            _refuse_alive(_read(uri), uri)
        _write(lease)
    time.sleep(SETTLE_SECONDS / (5 if storage.is_local(uri) else 1))
    lease.check()
    end = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, end), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        end.set()
        thread.join()
        with contextlib.suppress(OSError):  # must not hide the error that ended the block; the lease expires by itself
            holder = _read(uri)
            if holder is not None and holder.token == lease.token:
                storage.remove(uri)


def _refuse_alive(holder: _Holder | None, uri: str) -> None:
    """ArtifactError if a live process holds the lease file `uri`."""
    if holder is not None and holder.is_alive(uri):
        raise ArtifactError(
            f"another run is writing here ({holder.host}, process {holder.pid}, "
            f"seen {max(0.0, time.time() - holder.renewed):.0f} s ago).",
            uri.rpartition("/")[0],
            f"Wait for it, stop it, or choose another output=; the lease of a dead run expires after {TTL_SECONDS:.0f} s.",
        )


def is_held(uri: str) -> bool:
    """Whether a live process holds the lease file `uri`."""
    holder = _read(uri)
    return holder is not None and holder.is_alive(uri)


def _renew(lease: Lease, end: threading.Event) -> None:
    """Writes the lease file again at intervals until `end` is set or another run has taken the lease; runs in a thread."""
    while not end.wait(RENEW_SECONDS):
        try:
            lease.check()
            _write(lease)
        except ArtifactError:
            return
        except OSError:
            continue  # storage may be back at the next renewal; otherwise the lease expires


def _write(lease: Lease) -> None:
    storage.write_bytes(lease.uri, _content(lease))


def _content(lease: Lease) -> bytes:
    """The lease file, with this process as the holder, renewed now."""
    process: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "space": _pid_namespace()}
    holder = _Holder(token=lease.token, renewed=time.time(), **process)
    return json.dumps(asdict(holder)).encode()


def _pid_namespace() -> str:
    """Identifies the machine or container in which a process number is valid."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _read(uri: str) -> _Holder | None:
    """The process that holds the lease, from the lease file; None if the file is missing or is not a lease."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_bytes(uri))
        return _Holder(**content | {"renewed": float(content["renewed"])})
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        return None  # not a lease, or removed since
