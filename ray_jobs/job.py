"""What jobs and commands say about themselves: each module of a job exports `JOB`, each of a command `COMMAND`.

`scion --help` reads these from the source, without an import: a job imports torch and Ray, which takes seconds.
"""

import ast
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError

COMMON = ("output", "seed", "workers", "min_workers", "worker_cpus")
"""Keys of every job."""
_JOBS = (
    "pipeline", "shard", "transfer", "pretrain", "mine", "embed", "merge", "evaluate", "drift", "serve", "compare", "report",
)  # fmt: skip
_COMMANDS = ("submit", "jobs", "manifests", "verify", "status", "export", "diff", "bench")
_FILES = {"report": "report/job.py"}
"""Modules that are not named after their job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of `scion --help`, and the head of `scion JOB --help`. All values are literals."""

    summary: str
    reads: str
    writes: str
    keys: tuple[str, ...]
    """Keys and sections beside `COMMON`; all of them where empty."""
    after: tuple[str, ...] = ()
    """Jobs whose artefacts it reads; it finds them by their settings."""
    required: tuple[str, ...] = ("text", "source_model", "output")
    """Keys without a default."""
    instead: tuple[str, ...] = ()
    """Keys of which any names models in place of the artefacts of earlier jobs."""
    required_with_instead: tuple[str, ...] = ("output",)
    """Keys without a default where one of `instead` is given."""

    def required_keys(self, value: Callable[[str], Any]) -> tuple[str, ...]:
        """The keys that must be given.

        Args:
            value: returns the value of a key of the configuration.
        """
        return self.required_with_instead if any(map(value, self.instead)) else self.required


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What takes folders in place of a configuration, and needs no Ray."""

    arguments: str
    summary: str


def module_of(name: str) -> str:
    """The module of a job or a command."""
    return f"ray_jobs.{_FILES.get(name, name).removesuffix('.py').replace('/', '.')}"


@cache
def jobs() -> dict[str, Job]:
    """Every job by its name, in the order of the help text."""
    return {name: Job(**_literals(name, "JOB")) for name in _JOBS}


@cache
def commands() -> dict[str, Command]:
    """Every command by its name, in the order of the help text."""
    return {name: Command(**_literals(name, "COMMAND")) for name in _COMMANDS}


def check_job(name: str, others: Iterable[str] = ()) -> None:
    """Checks that there is a job of this name.

    Args:
        others: more names to suggest.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in jobs():
        near = difflib.get_close_matches(name, [*jobs(), *others], n=1)
        raise ConfigError(f"{name!r} is not a job.", "scion", f"Did you mean {near[0]!r}?" if near else "Try `scion --help`.")


def _literals(name: str, variable: str) -> dict[str, Any]:
    """The arguments in `variable = Class(...)` at the top level of a module."""
    path = Path(__file__).parent / _FILES.get(name, f"{name}.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Call(keywords=keywords)) if target == variable:
                return {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg}
    raise AssertionError(f"{path} has no {variable}")
