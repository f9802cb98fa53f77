"""`scion submit JOB CONFIG`: a job on a Ray cluster, by its job API."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.jobs.config import SubmitConfig
from data_pipeline.errors import ClusterError, ConfigError, JobError, Stopped
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import Command, check_job

COMMAND = Command(
    arguments="JOB CONFIG [key=value ...]",
    summary="a job on a cluster: sends this folder, follows the log (`scion config submit`)",
)
CODE = ("ray_jobs", "trainer", "data_pipeline", "cluster")
"""The packages of Scion, which are sent where the working directory does not hold them."""
EXCLUDES = ("/runs/", ".venv*/", "*.egg-info/", ".*_cache/", "node_modules/")
"""What is never sent, beside what Ray leaves out."""
JOB_OF, OUTPUT_OF = "scion_job", "scion_output"
"""Metadata of a submission."""
_RESUMABLE = 75
"""The exit code of a training that was stopped."""
_SHOWN = 5
"""Files that are named where a working directory is too large."""


def command(arguments: list[str], console: Console) -> None:
    """Submits a job, and follows it unless `submit.wait=false`.

    Raises:
        ConfigError: the arguments, the configuration or the working directory are wrong.
        ClusterError: the cluster does not answer, or the job runs already.
        JobError: the job has failed.
        Stopped: the job was stopped; the same command resumes it.
    """
    if len(arguments) < 2:
        raise ConfigError(
            "the job or its configuration is missing.", "scion submit", f"Usage: scion submit {COMMAND.arguments}"
        )
    job, path, *overrides = arguments
    check_job(job)
    config = load(path, overrides, job)
    _check_output(config)
    given, environment = config.submit, runtime_env(config.submit)
    entrypoint = _entrypoint(job, path, overrides, given.working_dir)

    from cluster.jobs import api  # takes a second to import, for which a mistake should not wait

    client = api.connect(given.address)
    name = next_name(api.submitted(client), given.name or default_name(job, config), job, config.output)
    _send(client, name, entrypoint, environment, given, {JOB_OF: job, OUTPUT_OF: config.output})
    console.print(f"submitted {name}\n  scion jobs follow {name}\n  scion jobs stop {name}", markup=False)
    if given.wait:
        follow(client, name, console)


def follow(client: Any, name: str, console: Console) -> None:
    """Passes the log of a job on until it ends, and fails as the job does.

    Raises:
        JobError: the job has failed.
        Stopped: it was stopped.
        ClusterError: there is no such job, or no answer.
    """
    from ray.job_submission import JobStatus

    from cluster.jobs import api

    try:
        details = api.follow(client, name, _write, lambda text: console.print(text, markup=False))
    except KeyboardInterrupt:
        console.print(f"\n{name} goes on\n  scion jobs follow {name}\n  scion jobs stop {name}", markup=False)
        raise
    if details.status == JobStatus.SUCCEEDED:
        return
    if details.status == JobStatus.STOPPED or details.driver_exit_code == _RESUMABLE:
        raise Stopped(f"{name} was stopped. The same command resumes it.")
    code = details.driver_exit_code or 1
    raise JobError(
        f"it has failed: {_reason(details)}", name, "", code if code > 0 else 128 - code
    )  # -9: a signal, as in a shell


def runtime_env(given: SubmitConfig) -> dict[str, Any]:
    """Ray's runtime environment of a submission; the user's own values win, but the folder is that of `submit.working_dir`."""
    from cluster.capacity import DRIVER_CPUS
    from cluster.jobs.api import STOP_SECONDS

    ours = {STOP_SECONDS: str(given.stop_seconds), DRIVER_CPUS: f"{given.driver_cpus:g}"}
    own = {**given.runtime_env, "env_vars": ours | given.runtime_env.get("env_vars", {})}
    if taken := sorted({"working_dir", "excludes"} & set(own)):
        raise ConfigError("Scion sets it.", f"submit.runtime_env.{taken[0]}", f"Give submit.{taken[0]}.")
    code = Path(__file__).parent.parent
    if Path(given.working_dir).resolve() != code:
        own["py_modules"] = [*(str(code / name) for name in CODE), *own.get("py_modules", [])]
    return own | {"working_dir": given.working_dir, "excludes": [*EXCLUDES, *given.excludes]}


def default_name(job: str, config: ScionConfig) -> str:
    """The last folder of `output` and the job, with dashes for what an id cannot hold."""
    last = config.output.rstrip("/").rpartition("/")[2]
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in f"{last}-{job}").strip(
        "-._"
    )


def next_name(others: list[Any], begin: str, job: str, output: str) -> str:
    """The id of the next attempt, which no job has.

    Raises:
        ClusterError: an earlier attempt still runs.
    """
    for one in others:
        if (one.metadata or {}).get(OUTPUT_OF) == output and one.metadata.get(JOB_OF) == job and not one.status.is_terminal():
            fix = f"scion jobs follow {one.submission_id}, or scion jobs stop {one.submission_id}"
            raise ClusterError(f"{job} is {one.status.value} already for output={output}.", one.submission_id, fix)
    attempts = [one.submission_id.removeprefix(f"{begin}-") for one in others if one.submission_id.startswith(f"{begin}-")]
    return f"{begin}-{1 + max((int(one) for one in attempts if one.isdecimal()), default=0)}"


def _check_output(config: ScionConfig) -> None:
    """ConfigError for a relative output: it would lie in the copy of the working directory, and end with it."""
    for key in ("output", "shards"):
        value = getattr(config, key)
        if value and "://" not in value and not value.startswith("/"):
            fix = "Name a bucket, such as s3://BUCKET/RUN, or the absolute path of a folder that all nodes share."
            raise ConfigError(f"{value} would lie in a copy of this folder on one node.", key, fix)


def _entrypoint(job: str, path: str, overrides: list[str], working_dir: str) -> str:
    """The command that runs the job in the copy of the working directory."""
    folder = Path(working_dir).resolve()
    if not folder.is_dir():
        raise ConfigError("there is no such folder.", f"submit.working_dir={working_dir}")
    if not Path(path).resolve().is_relative_to(folder):
        fix = "Move it there, or name another submit.working_dir."
        raise ConfigError(f"it is not in {folder}, the folder that is sent to the cluster.", path, fix)
    own = [one for one in overrides if not one.startswith("submit.")]
    relative = Path(path).resolve().relative_to(folder).as_posix()
    return shlex.join(["python", "-m", "ray_jobs.cli", job, relative, *own])


def _send(
    client: Any, name: str, entrypoint: str, environment: dict[str, Any], given: SubmitConfig, metadata: dict[str, str]
) -> None:
    """Sends the working directory and submits the job; ClusterError or ConfigError if the cluster refuses either."""
    from cluster.jobs import api

    about = {"metadata": metadata, "entrypoint_num_cpus": given.driver_cpus}
    try:
        with api.answers(name):
            client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=environment, **about)
    except ClusterError as error:
        if not any(sign in str(error) for sign in ("status code 413", "exceeds the maximum size", "Package size")):
            raise
        fix = f"Leave files out by submit.excludes or .gitignore. The largest: {', '.join(_largest(given.working_dir))}."
        raise ConfigError("it is too large to be sent.", f"submit.working_dir={given.working_dir}", fix) from error


def _largest(folder: str) -> list[str]:
    """The largest files below a folder, with their sizes; those in hidden folders and in `runs` are left out."""
    sizes: list[tuple[int, str]] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".") and one not in ("runs", "__pycache__", "node_modules")]
        paths = [Path(root, name) for name in files]
        sizes += [(path.stat().st_size, path.relative_to(folder).as_posix()) for path in paths if not path.is_symlink()]
    return [f"{name} ({size / 1e6:.0f} MB)" for size, name in sorted(sizes, reverse=True)[:_SHOWN]]


def _write(text: str) -> None:
    """Writes to the standard output, with a mark for what its encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _reason(details: Any) -> str:
    """Why a job has failed, in a line."""
    lines = [line.strip() for line in (details.message or "").splitlines() if line.strip()]
    code = f"exit code {details.driver_exit_code}" if details.driver_exit_code is not None else ""
    return code if details.driver_exit_code else (lines[0] if lines else "the cluster does not say why")
