"""`scion JOB --help` and `scion config [SECTION]`: keys with types, defaults and meanings."""

import textwrap
from collections.abc import Iterable
from dataclasses import MISSING

from rich.console import Console

from data_pipeline.errors import ConfigError
from ray_jobs.config.keys import Key, advice, keys, type_name, yaml_value
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import COMMON, jobs

_WIDTH = 110


def print_job(name: str, console: Console) -> None:
    """Prints what a job reads and writes, and its keys."""
    job = jobs()[name]
    lines = [
        f"usage: scion {name} CONFIG [key=value ...]",
        "",
        f"{job.summary}",
        f"reads   {job.reads}",
        f"writes  {job.writes}",
        "",
    ]
    chosen = [key for key in _every() if not job.keys or _within(key, (*COMMON, *job.keys))]
    _print([*lines, *_help_lines(chosen)], console)
    if job.after:
        names = ", ".join(f"`scion {one} --help`" for one in job.after)
        _print(
            ["", "It finds the artefacts that it reads by their settings, so that the keys of these jobs count, too:", names],
            console,
        )


def print_keys(sections: list[str], console: Console) -> None:
    """Prints every key, or those of some sections.

    Raises:
        ConfigError: there is no such section; names the nearest.
    """
    for section in sections:
        if not any(_within(key, (section,)) for key in _every()):
            raise ConfigError("there is no such section or key.", section, advice(section, ScionConfig))
    _print(_help_lines(key for key in _every() if not sections or _within(key, sections)), console)


def _every() -> list[Key]:
    return list(keys(ScionConfig))


def _within(key: Key, sections: Iterable[str]) -> bool:
    return any(f"{key.name}.".startswith((f"{section}.", f"{section}[")) for section in sections)


def _help_lines(chosen: Iterable[Key]) -> list[str]:
    """The lines of help for these keys, wrapped: name, type and default, then the description."""
    lines = []
    for key in chosen:
        default = "must be given" if key.default is MISSING else f"default {yaml_value(key.default)}"
        head = f"{key.name}: {type_name(key.type)}, {default}"
        lines += textwrap.wrap(head, _WIDTH, subsequent_indent="        ", break_long_words=False, break_on_hyphens=False)
        lines += textwrap.wrap(key.doc, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return lines


def _print(lines: Iterable[str], console: Console) -> None:
    console.print("\n".join(lines), markup=False)
