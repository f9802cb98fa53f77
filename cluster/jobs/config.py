"""The settings of a submission. No Ray."""

import re
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitConfig:
    """Where `scion submit` runs a job, and with what. The job itself reads none of it."""

    address: str = ""
    """The cluster's dashboard, such as http://HEAD:8265; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the local Ray."""
    name: str = ""
    """What submission ids begin with; by default the last folder of output and the job. The number of the attempt follows."""
    working_dir: str = "."
    """The folder that is sent to the cluster, in which the job runs. Of what .gitignore names nothing is sent."""
    excludes: tuple[str, ...] = ()
    """What else is not sent, as in .gitignore."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """More of Ray's runtime environment, such as {pip: [s3fs], env_vars: {AWS_REGION: eu-west-1}}."""
    driver_cpus: float = 1.0
    """Cores of the job's first process; above 0 it runs on a node that lends cores, which a head should not."""
    stop_seconds: int = 600
    """Time that a stopped job has for its last checkpoint."""
    wait: bool = True
    """Whether to follow the job's log until it ends."""

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            fix = "Use letters, digits, dots, dashes and underscores."
            raise ConfigError(f"{self.name!r} cannot begin a submission id.", "submit.name", fix)
        if self.driver_cpus < 0 or self.stop_seconds < 1:
            raise ConfigError("driver_cpus must be at least 0 and stop_seconds at least 1.", "submit")
        given = self.runtime_env.get("env_vars", {})
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise ConfigError("expected a map of text to text.", "submit.runtime_env.env_vars", 'Quote numbers: "1".')
