"""`scion submit JOB CONFIG`: a job on a Ray cluster, by its job API."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.jobs.config import SubmitConfig
from data_pipeline.artifacts import storage
from data_pipeline.errors import ClusterError, ConfigError, JobError, Stopped, mask_passwords, reason
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
_LONGEST = 100
"""Characters of a folder in an id, which becomes the name of a file."""
_PASSING = ("already exists", "agent on the head")
"""Signs of an answer after which a job is submitted again: others took the id meanwhile, or the cluster still starts."""
_TRIES = 5


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
    _check_files(path, given, environment["excludes"])

    from cluster.jobs import api  # takes a second to import, for which a mistake should not wait

    client = api.connect(given.address)
    name = _submit(client, job, config, entrypoint, environment)
    console.print(f"submitted {name}{_hints(name, given.address)}", markup=False)
    if given.wait:
        follow(client, name, console, given.address)


def follow(client: Any, name: str, console: Console, address: str = "") -> None:
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
        console.print(f"\n{name} goes on{_hints(name, address)}", markup=False)
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
    """Ray's runtime environment of a submission; the user's own values win, but the folder is that of `submit.working_dir`.

    Raises:
        ConfigError: Ray would refuse it, or modules in the folder would hide Scion's.
    """
    from ray.runtime_env import RuntimeEnv

    from cluster.capacity import DRIVER_CPUS
    from cluster.jobs.api import STOP_SECONDS

    ours = {STOP_SECONDS: str(given.stop_seconds), DRIVER_CPUS: f"{given.driver_cpus:g}"}
    own = {**given.runtime_env, "env_vars": ours | given.runtime_env.get("env_vars", {})}
    if taken := sorted({"working_dir", "excludes"} & set(own)):
        raise ConfigError("Scion sets it.", f"submit.runtime_env.{taken[0]}", f"Give submit.{taken[0]}.")
    try:
        modules = list(RuntimeEnv(**own).get("py_modules") or [])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Ray refuses it ({reason(error)}).", "submit.runtime_env") from error
    folder = Path(given.working_dir).resolve()
    if not (folder / "ray_jobs" / "submit.py").is_file():
        hiding = [one.name for name in CODE for one in (folder / f"{name}.py", folder / name) if _is_module(one)]
        if hiding:
            fix = "Rename it, or send another folder."
            raise ConfigError(f"{hiding[0]} there would hide Scion's own.", f"submit.working_dir={given.working_dir}", fix)
        own["py_modules"] = [*_code(), *modules]
    return own | {"working_dir": given.working_dir, "excludes": [*EXCLUDES, *given.excludes]}


def default_name(job: str, config: ScionConfig) -> str:
    """The last folder of `output` and the job, with dashes for what an id cannot hold."""
    last = config.output.rstrip("/").rpartition("/")[2]
    name = "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in f"{last[-_LONGEST:]}-{job}"
    )
    return name.strip("-._")


def next_name(others: list[Any], begin: str, job: str, output: str) -> str:
    """The id of the next attempt, which no job has.

    Raises:
        ClusterError: an earlier attempt still runs.
    """
    for one in others:
        about = one.metadata or {}
        is_same = about.get(JOB_OF) == job and about.get(OUTPUT_OF) == output != ""  # an endpoint may do without an output
        if is_same and not one.status.is_terminal():
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
    if (relative := _inside(path, working_dir)) is None:
        fix = "Move it there, or name another submit.working_dir."
        raise ConfigError(f"it is not in {folder}, the folder that is sent to the cluster.", path, fix)
    own = [one for one in overrides if re.split(r"[.\[=]", one)[0] != "submit"]
    return shlex.join(["python", "-m", "ray_jobs.cli", job, relative, *own])


def _inside(path: str, folder: str) -> str | None:
    """The path of a file relative to a folder; None if it lies elsewhere. A link counts where it is, as Ray sends it."""
    for one, root in (
        (Path(os.path.abspath(path)), Path(os.path.abspath(folder))),
        (Path(path).resolve(), Path(folder).resolve()),
    ):
        if one.is_relative_to(root):
            return one.relative_to(root).as_posix()
    return None


def _submit(client: Any, job: str, config: ScionConfig, entrypoint: str, environment: dict[str, Any]) -> str:
    """Submits the job under the next free id, and returns it; ClusterError or ConfigError if the cluster refuses it."""
    from cluster.jobs import api

    output = mask_passwords(storage.absolute(config.output).rstrip("/")) if config.output else ""
    begin = config.submit.name or default_name(job, config)
    for left in reversed(range(_TRIES)):
        name = next_name(api.submitted(client), begin, job, output)
        try:
            _send(client, name, entrypoint, environment, config.submit, {JOB_OF: job, OUTPUT_OF: output})
            return name
        except ClusterError as error:
            if not left or not any(sign in str(error) for sign in _PASSING):
                raise
    raise AssertionError("the last try returns or raises")


def _send(
    client: Any, name: str, entrypoint: str, environment: dict[str, Any], given: SubmitConfig, metadata: dict[str, str]
) -> None:
    """Sends the working directory and submits the job; ClusterError or ConfigError if the cluster refuses either."""
    from cluster.jobs import api, files

    about = {"metadata": metadata, "entrypoint_num_cpus": given.driver_cpus}
    try:
        with api.answers(name):
            if modules := environment.get("py_modules"):
                environment = environment | {
                    "py_modules": [api.package(client, one) if one in _code() else one for one in modules]
                }
            client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=environment, **about)
    except ClusterError as error:
        if not any(sign in str(error) for sign in ("status code 413", "exceeds the maximum size", "Package size")):
            raise
        raise _too_large(given, files.sent(given.working_dir, environment["excludes"])) from error


def _check_files(path: str, given: SubmitConfig, excludes: list[str]) -> None:
    """ConfigError for a folder that no cluster could take, before it is read, or that would not hold the configuration."""
    from cluster.jobs import files

    try:
        sizes = files.sent(given.working_dir, excludes)
    except files.TooLarge as error:
        raise _too_large(given, error.args[0]) from error
    if _inside(path, given.working_dir) not in sizes:
        fix = "Move it, or change submit.excludes, .gitignore or .rayignore. Folders such as runs/ are never sent."
        raise ConfigError("it is among the files that are not sent.", path, fix)


def _too_large(given: SubmitConfig, sizes: dict[str, int]) -> ConfigError:
    """The ConfigError for a folder that is too large, with its largest files; raises nothing itself."""
    largest = sorted(sizes.items(), key=lambda one: -one[1])[:_SHOWN]
    shown = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in largest)
    fix = f"Leave files out by submit.excludes or .gitignore. The largest: {shown}."
    return ConfigError("it is too large to be sent.", f"submit.working_dir={given.working_dir}", fix)


def _code() -> list[str]:
    return [str(Path(__file__).parent.parent / name) for name in CODE]


def _is_module(path: Path) -> bool:
    return path.is_file() if path.suffix else (path / "__init__.py").is_file()


def _hints(name: str, address: str) -> str:
    at = f" address={mask_passwords(address)}" if address else ""
    return f"\n  scion jobs follow {name}{at}\n  scion jobs stop {name}{at}"


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
