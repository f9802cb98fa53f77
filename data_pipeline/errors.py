"""The error tree: what was wrong, where, and what to do.

Every constructor argument stays in `args`, because Ray pickles an exception on the worker and Python rebuilds it from
`args` on the driver; an exception that formats its text in `__init__` breaks on that trip.
"""

import re
from typing import Any

_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/@\s]+(?=@)")


def mask_passwords(value: Any) -> Any:
    """Text, or settings with such text in them, in which a URL has `***` in place of its password: for what is printed and
    what is kept."""
    if isinstance(value, dict):
        return {name: mask_passwords(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mask_passwords(one) for one in value)
    return _PASSWORD.sub(r"\1***", value) if isinstance(value, str) else value


class ScionError(Exception):
    """A failure that Scion explains. Ends a command with exit code 1."""

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return str(mask_passwords(f"{place}{self.what}{' ' + self.fix if self.fix else ''}"))


class UserError(ScionError):
    """A mistake of the user. Ends a command with exit code 2 and no traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A key, value or combination of values that is not valid."""


class DataError(UserError):
    """Input text, pairs, vectors or dictionaries that cannot be used."""


class ModelError(UserError):
    """A model folder or tokenizer that cannot be used."""


class ArtifactError(UserError):
    """A folder that is not the artefact that was expected there."""


class ClusterError(UserError):
    """The Ray cluster is missing or too small for what was asked."""


class CorruptError(ScionError):
    """Bytes on disk are not those that the manifest names."""


class VerifyError(ScionError):
    """An artefact is not what it should be."""


class DataOrderError(ScionError):
    """A rank received other rows than the plan has for it. Never trained on."""


class TrainingError(ScionError):
    """Training cannot go on: a loss that is not finite, a worker that failed."""


class Stopped(ScionError):
    """The run was asked to stop, and can go on from what it saved. Ends a command with EX_TEMPFAIL, which `ray job` and
    Kubernetes take for "not done yet"."""

    exit_code = 75


def reason(error: BaseException) -> str:
    """The first line of what another library's exception says, or its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
