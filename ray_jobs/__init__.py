"""One file a job: YAML in, artefact out. No algorithm, no tensor."""

import os
from pathlib import Path

_BEFORE_RAY = {
    "TOKENIZERS_PARALLELISM": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's own notes about its internals go to its log, and a SIGTERM is ours to handle, without a native stack trace.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "RAY_DATA_LOGGING_CONFIG": str(Path(__file__).parent.parent / "cluster" / "ray_data_logging.yaml"),
}
"""Ray reads them when it is imported, and each way to start a job imports this package first: `scion JOB`, `python -m
ray_jobs.JOB`. Values that the user has set stay."""

for _name, _value in _BEFORE_RAY.items():
    os.environ.setdefault(_name, _value)
