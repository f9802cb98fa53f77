"""The tree of errors. Each says what is wrong, where, and how to fix it.

    ScionError                        exit code 1
      UserError                       exit code 2: ConfigError, DataError, ModelError, ArtifactError, ClusterError
      CorruptError, VerifyError, DataOrderError, TrainingError
      Stopped                         exit code 75

Ray pickles an exception on the worker, and Python rebuilds it from `args` on the driver. So every constructor argument
stays in `args`: an exception that formats its text in `__init__` breaks on that trip.
"""

import re
from typing import Any

_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/@\s]+(?=@)")


def mask_passwords(value: Any) -> Any:
    """Replaces the password of each URL by `***`, in a text or in all texts of nested settings."""
    if isinstance(value, dict):
        return {name: mask_passwords(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mask_passwords(item) for item in value)
    return _PASSWORD.sub(r"\1***", value) if isinstance(value, str) else value


class ScionError(Exception):
    """A failure with an explanation. Ends a command with exit code 1."""

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
    """An invalid key, value or combination of values."""


class DataError(UserError):
    """Input text, pairs, vectors or dictionaries that cannot be used."""


class ModelError(UserError):
    """A model folder or tokenizer that cannot be used."""


class ArtifactError(UserError):
    """A folder that is not the artefact that was expected there."""


class ClusterError(UserError):
    """The Ray cluster is missing or too small for the job."""


class CorruptError(ScionError):
    """The bytes on disk differ from those that were written."""


class VerifyError(ScionError):
    """A check of an artefact failed."""


class DataOrderError(ScionError):
    """A rank received other rows than the order assigns to it. Raised before they are trained on."""


class TrainingError(ScionError):
    """Training cannot continue: a loss that is not finite, a worker that failed."""


class JobError(ScionError):
    """A job on a cluster that has failed. Ends a command with the exit code of the job."""

    def __init__(self, what: str, where: str = "", fix: str = "", exit_code: int = 1) -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, exit_code)  # by which it is made again in another process
        self.exit_code = exit_code


class Stopped(ScionError):
    """The run stopped on request and can resume from its last checkpoint.

    Ends a command with EX_TEMPFAIL, which `ray job` and Kubernetes take for "not done yet".
    """

    exit_code = 75


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or its class if it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__
