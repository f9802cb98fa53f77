"""Jobs of a Ray cluster: submitted, followed, stopped and listed over HTTP. This process joins no cluster."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
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
"""How long a cluster may give no answer before following its job ends, and a log no line before it is asked for anew."""
_CONNECT_SECONDS, _ANSWER_SECONDS, _STORE_SECONDS = 10.0, 30.0, 300.0
"""Time-outs: to connect, to be answered, and to be answered when the cluster first stores what was sent."""
_UNKNOWN = "there is no such job."
Say = Callable[[str], None]


class _Client(JobSubmissionClient):
    """Ray's client with time-outs: a connection may be dead without a sign, as after a machine has slept."""

    def _do_request(self, method: str, endpoint: str, **about: Any) -> Any:
        seconds = _ANSWER_SECONDS if method == "GET" else _STORE_SECONDS
        return super()._do_request(method, endpoint, timeout=(_CONNECT_SECONDS, seconds), **about)


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster at an address, or where it is empty of the one that Ray finds.

    Raises:
        ClusterError: there is no answer, or the cluster wants a token.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    used = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), "")
    host = used.partition("://")[2] or used
    check_reachable(host.partition("/")[0].rpartition("@")[2], used, "Name the dashboard, such as http://HEAD:8265.")
    if "://" not in address and _is_dashboard(address):
        address = f"http://{address}"
    try:
        with _prefers(address):
            return _Client(address or None)
    except Exception as error:  # ConnectionError, AuthenticationError, RuntimeError, and whatever a name resolves to
        raise _refusal(error, address or "the Ray of this machine") from error


def _is_dashboard(address: str) -> bool:
    """Whether HOST:PORT answers as a dashboard: Ray takes it for the address of a head, and waits for 40 s."""
    try:
        return (
            ":" in address and "ray_version" in requests.get(f"http://{address}/api/version", timeout=_CONNECT_SECONDS).json()
        )
    except (requests.RequestException, ValueError):
        return False


@contextmanager
def answers(where: str) -> Iterator[None]:
    """Raises ClusterError for what the client raises in the block."""
    try:
        yield
    except (AuthenticationError, RuntimeError, ValueError, ConnectionError, requests.RequestException) as error:
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


def package(client: JobSubmissionClient, folder: str) -> str:
    """Sends a package of Python unless the cluster has it, and returns its URI for `py_modules`.

    Ray itself would leave out what `excludes` names, which is meant for the working directory.
    """
    uri: str = client._upload_package_if_needed(
        folder, include_gitignore=False, include_parent_dir=True, excludes=["__pycache__"]
    )
    return uri


def follow(client: JobSubmissionClient, name: str, write: Say, say: Say) -> JobDetails:
    """Passes the log of a job on until it ends, also over broken connections; what the cluster says of it then.

    Args:
        write: gets each piece of the log once; what it raises is passed on.
        say: gets why a job waits, and that the cluster gives no answer.

    Raises:
        ClusterError: there is no such job, or no more, or the cluster has given no answer for minutes.
    """
    said, written = None, 0
    while (details := _patient_state(client, name, say)).status == JobStatus.PENDING:
        if details.message and details.message != said:
            say(said := details.message)
        time.sleep(_POLL_SECONDS)
    while True:
        written = asyncio.run(_pass_on(client, name, write, written))
        if (details := _patient_state(client, name, say)).status.is_terminal():
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
    limit = _stop_seconds(details)
    with answers(name):
        client.stop_job(name)
    if details.status == JobStatus.PENDING:
        say(f"{name} has not started; the cluster stops it as soon as it does")
    else:
        say(f"{name} is asked to stop; a training first saves a checkpoint, for which it has {limit:g} s")
    deadline = time.monotonic() + limit + 60
    while time.monotonic() < deadline or details.status == JobStatus.PENDING:
        if (details := _patient_state(client, name, say)).status.is_terminal():
            return details
        time.sleep(_POLL_SECONDS)
    raise ClusterError(f"it has not ended within {limit + 60:g} s.", name, "Look at its log: scion jobs follow " + name)


def _stop_seconds(details: JobDetails) -> float:
    """The time between SIGTERM and SIGKILL that a job was submitted with."""
    given = ((details.runtime_env or {}).get("env_vars") or {}).get(STOP_SECONDS)
    try:
        return float(given or _RAYS_STOP_SECONDS)
    except ValueError:  # whoever submitted it: Ray itself ignores that only when it stops the job
        return _RAYS_STOP_SECONDS


def _patient_state(client: JobSubmissionClient, name: str, say: Say) -> JobDetails:
    """What the cluster says of a job, also where it gives no answer for a while; says so once.

    Raises:
        ClusterError: there is no such job, or no answer for minutes.
    """
    began, is_said = time.monotonic(), False
    while True:
        try:
            return state_of(client, name)
        except ClusterError as error:
            if error.what == _UNKNOWN or time.monotonic() - began > _SILENT_SECONDS:
                raise
        if not is_said:
            say("the cluster gives no answer; trying again")
            is_said = True
        time.sleep(_POLL_SECONDS)


async def _pass_on(client: JobSubmissionClient, name: str, write: Say, written: int) -> int:
    """Passes on what lies behind the first `written` characters of the log, until the connection ends; their number then."""
    seen, pieces = 0, client.tail_job_logs(name)
    while (piece := await _next(pieces)) is not None:
        if new := piece[max(0, written - seen) :]:
            write(new)
        seen += len(piece)
    return max(seen, written)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    """The next piece of a log; None where the connection ends, breaks, or gives nothing for minutes."""
    try:
        async with asyncio.timeout(_SILENT_SECONDS):
            return await anext(pieces)
    except Exception:  # whatever it is, the state of the job is asked for next
        return None


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
    reason = _reason(str(error)) or type(error).__name__
    if isinstance(error, AuthenticationError) or "status code 401" in reason or "status code 403" in reason:
        fix = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        return ClusterError("the cluster wants a token, or another one.", where, fix)
    if "status code 404" in reason and "does not exist" in reason:
        return ClusterError(_UNKNOWN, where, "`scion jobs` lists them.")
    if "No available agent" in reason:
        fix = "If it does not start soon: several Rays on a machine each need a --dashboard-agent-listen-port of their own."
        return ClusterError("Ray's agent on the head does not run.", where, fix)
    return ClusterError(f"the cluster gives no proper answer ({reason}).", where, "Name its dashboard in submit.address.")


def _reason(text: str) -> str:
    """The text in a line; of a traceback, its head and its last line, which says what went wrong."""
    head, mark, trace = text.partition("Traceback (most recent call last)")
    lines = [line.strip() for line in trace.splitlines() if line.strip(" .")]
    return " ".join(f"{head} {lines[-1]}".split() if mark and lines else text.split())[:500]
