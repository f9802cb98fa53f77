"""Jobs of a Ray cluster: submitted, followed, stopped and listed over HTTP. This process joins no cluster."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.reach import check_reachable
from data_pipeline.errors import ClusterError

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables that Ray's client prefers to the address that it is given."""
STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""An environment variable of a job: the time between its SIGTERM and its SIGKILL."""
_RAYS_STOP_SECONDS = 3.0
_POLL_SECONDS = 1.0
_CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that name each file that is not sent, and each end of a connection."""
_SILENT_SECONDS = 300.0
"""How long a cluster may give no answer before following its job ends."""
Say = Callable[[str], None]


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster at an address, or where it is empty of the one that Ray finds.

    Raises:
        ClusterError: there is no answer, or the cluster wants a token.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "://" in address:
        check_reachable(address.partition("://")[2].partition("/")[0], address, "Name the dashboard, such as http://HEAD:8265.")
    try:
        with _prefers(address):
            return JobSubmissionClient(address or None)
    except Exception as error:  # ConnectionError, AuthenticationError, RuntimeError, and whatever a name resolves to
        raise _refusal(error, address or "the Ray of this machine") from error


@contextmanager
def answers(where: str) -> Iterator[None]:
    """Raises ClusterError for what the client raises in the block."""
    try:
        yield
    except (AuthenticationError, RuntimeError, ValueError, requests.RequestException) as error:
        raise _refusal(error, where) from error


def state_of(client: JobSubmissionClient, name: str) -> JobDetails:
    """What the cluster says of a job.

    Raises:
        ClusterError: there is no such job, or no answer.
    """
    with answers(name):
        found: JobDetails = client.get_job_info(name)
        return found


def submitted(client: JobSubmissionClient) -> list[JobDetails]:
    """All jobs that were submitted, the newest first; ClusterError if there is no answer."""
    with answers("the list of jobs"):
        return sorted((one for one in client.list_jobs() if one.submission_id), key=lambda one: -(one.start_time or 0))


def follow(client: JobSubmissionClient, name: str, write: Say, say: Say) -> JobDetails:
    """Passes the log of a job on until it ends, also over broken connections; what the cluster says of it then.

    Args:
        write: gets each piece of the log once.
        say: gets why a job waits, and that the cluster gives no answer.

    Raises:
        ClusterError: there is no such job, or the cluster has given no answer for minutes.
    """
    _await_start(client, name, say)
    written, answered = 0, time.monotonic()
    while True:
        written = asyncio.run(_pass_on(client, name, write, written))
        try:
            details = state_of(client, name)
        except ClusterError:
            if time.monotonic() - answered > _SILENT_SECONDS:
                raise
            say("the cluster gives no answer; trying again")
        else:
            answered = time.monotonic()
            if details.status.is_terminal():
                asyncio.run(_pass_on(client, name, write, written))
                return details
        time.sleep(_POLL_SECONDS)


def stop(client: JobSubmissionClient, name: str, say: Say) -> JobDetails:
    """Asks a job to stop, and waits until it has.

    Raises:
        ClusterError: there is no such job, or it does not end within its time.
    """
    details = state_of(client, name)
    if details.status.is_terminal():
        return details
    limit = float(((details.runtime_env or {}).get("env_vars") or {}).get(STOP_SECONDS, _RAYS_STOP_SECONDS))
    with answers(name):
        client.stop_job(name)
    say(f"{name} is asked to stop; a training first saves a checkpoint, for which it has {limit:g} s")
    deadline = time.monotonic() + limit + 60
    while time.monotonic() < deadline:
        if (details := state_of(client, name)).status.is_terminal():
            return details
        time.sleep(_POLL_SECONDS)
    raise ClusterError(f"it has not ended within {limit + 60:g} s.", name, "Look at its log: scion jobs follow " + name)


def _await_start(client: JobSubmissionClient, name: str, say: Say) -> None:
    """Says once why a job waits, and waits until it does so no more."""
    said = None
    while (details := state_of(client, name)).status == JobStatus.PENDING:
        if details.message and details.message != said:
            say(said := details.message)
        time.sleep(_POLL_SECONDS)


async def _pass_on(client: JobSubmissionClient, name: str, write: Say, written: int) -> int:
    """Passes on what lies behind the first `written` characters of the log, until the connection ends; their number then."""
    seen = 0
    try:
        async for piece in client.tail_job_logs(name):
            if new := piece[max(0, written - seen) :]:
                write(new)
            seen += len(piece)
    except Exception:  # whatever breaks the connection, the state of the job is asked for next
        pass
    return max(seen, written)


@contextmanager
def _prefers(address: str) -> Iterator[None]:
    """Hides the environment variables from Ray's client where an address is given."""
    hidden: dict[str, Any] = {name: os.environ.pop(name) for name in ADDRESSES if address and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _refusal(error: Exception, where: str) -> ClusterError:
    """The ClusterError for an error of Ray's client; raises nothing itself."""
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    if isinstance(error, AuthenticationError) or "status code 401" in reason or "status code 403" in reason:
        fix = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        return ClusterError("the cluster wants a token, or another one.", where, fix)
    if "does not exist" in reason or "status code 404" in reason:
        return ClusterError("there is no such job.", where, "`scion jobs` lists them.")
    return ClusterError(f"the cluster gives no proper answer ({reason}).", where, "Name its dashboard in submit.address.")
