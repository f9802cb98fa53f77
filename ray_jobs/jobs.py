"""`scion jobs`: the jobs of a cluster, and one of them followed or stopped."""

import re
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from data_pipeline.errors import ConfigError, mask_passwords
from ray_jobs import submit
from ray_jobs.job import Command

COMMAND = Command(
    arguments="[follow ID | stop ID] [address=URL]",
    summary="the jobs of a cluster: all, or the log or the end of one",
)
_ID = re.compile(r"(?!\.\.?$)[^/?#%\s]+")
"""What can be a part of an address; Ray itself takes any id."""


def command(arguments: list[str], console: Console) -> None:
    """Lists all jobs, follows one or stops one.

    Raises:
        ConfigError: the arguments are not those of `COMMAND`.
        ClusterError: there is no such job, or no answer.
        JobError, Stopped: as the job that is followed.
    """
    address = [one.removeprefix("address=") for one in arguments if one.startswith("address=")]
    words = [one for one in arguments if not one.startswith("address=")]
    if len(words) not in (0, 2) or (words and words[0] not in ("follow", "stop")) or len(address) > 1:
        raise ConfigError("the arguments are not right.", "scion jobs", f"Usage: scion jobs {COMMAND.arguments}")

    if words and not _ID.fullmatch(words[1]):
        raise ConfigError(f"{words[1]!r} is no id of a job.", "scion jobs", "`scion jobs` lists them.")

    from cluster.jobs import api  # takes a second to import, for which a mistake should not wait

    client = api.connect("".join(address))
    if not words:
        console.print(table(api.submitted(client), time.time()))
    elif words[0] == "follow":
        submit.follow(client, words[1], console, "".join(address))
    else:
        details = api.stop(client, words[1], lambda text: console.print(text, markup=False))
        console.print(f"{words[1]} is {details.status.value}", markup=False)


def table(jobs: list[Any], now: float) -> Table:
    """A row for each submission, the newest first."""
    shown = Table(
        Column("id", min_width=max((len(one.submission_id) for one in jobs), default=2), no_wrap=True),
        "job",
        Column("output", overflow="fold"),
        "status",
        "time",
        "message",
    )
    for one in jobs:
        about = one.metadata or {}
        message = "" if one.status.value in ("SUCCEEDED", "RUNNING", "STOPPED") else " ".join((one.message or "").split())[:80]
        job, output = about.get(submit.JOB_OF, "-"), mask_passwords(about.get(submit.OUTPUT_OF, "-"))
        shown.add_row(*map(escape, (one.submission_id, job, output, one.status.value, _duration(one, now), message)))
    return shown


def _duration(job: Any, now: float) -> str:
    if not job.start_time:
        return "-"
    seconds = max(0, int((job.end_time or 1000 * now) - job.start_time) // 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
