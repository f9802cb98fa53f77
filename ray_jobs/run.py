"""Runs a job in this process, for the command line and for Python."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Artifact
from data_pipeline.errors import ConfigError, reason
from ray_jobs.config.load import load, with_absolute_paths
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import check_job, module_of


@dataclass(frozen=True, slots=True)
class Run:
    """What a job has left."""

    config: ScionConfig
    """Every setting, with the defaults."""

    @property
    def output(self) -> str:
        """The folder or URI below which the job has written."""
        return self.config.output

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The finished artefacts by their folders below `output`, such as `pretrain` and `random/pretrain`."""
        folders = [
            path.removesuffix(artifact.FINISHED).rstrip("/")
            for path in storage.files(self.output)
            if path.endswith(artifact.FINISHED)
        ]
        found = {folder: artifact.load(storage.join(self.output, folder)) for folder in sorted(folders)}
        return {folder: one for folder, one in found.items() if one is not None}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The numbers of the report; None before `scion pipeline` or `scion report` has made it."""
        path = storage.join(self.output, "summary.json")
        return json.loads(storage.read_bytes(path)) if storage.exists(path) else None

    def _repr_html_(self) -> str:
        """The finished artefacts, for notebooks."""
        rows = "".join(
            f"<tr><td>{name}</td><td>{one.kind}</td><td>{one.seconds:,.1f} s</td></tr>" for name, one in self.artifacts.items()
        )
        return f"<b>{self.output}</b><table><tr><th>artefact</th><th>kind</th><th>time</th></tr>{rows}</table>"


def run(conf: str | Path | None = None, *overrides: str, job: str = "pipeline", **keys: Any) -> Run:
    """Runs a job as `scion JOB CONF key=value ...` does, and returns what it left.

    Args:
        conf: a YAML file; None where `keys` say all.
        overrides: `key=value` pairs with dotted keys, as on the command line.
        job: a job of `scion --help`, but for `serve`, which never ends.
        keys: values of top-level keys; of sections as dictionaries, e.g. `pretrain={"train": {"steps": 100}}`.

    Raises:
        ScionError: the configuration is wrong, or the job fails.
    """
    if job == "serve":
        raise ConfigError("a server never ends.", "job=serve", "Use `scion serve`, or Embedder.load(...).encode(...).")
    check_job(job)
    loaded = load_config(None if conf is None else os.fspath(conf), list(overrides), job, keys)
    run_job(job, loaded, Console(highlight=False, soft_wrap=True))
    return Run(loaded)


def load_config(path: str | None, overrides: list[str], job: str, values: Mapping[str, Any] | None = None) -> ScionConfig:
    """The configuration of a job, checked as far as it can be before anything starts.

    Raises:
        ConfigError: it is wrong, names files that do not exist, or an output that cannot be written.
    """
    loaded = with_absolute_paths(load(path, overrides, job, values))
    if job != "serve":
        _check_writable(loaded.output)
    importlib.import_module("ray_jobs.preflight").check(loaded, job)
    return loaded


def run_job(job: str, loaded: ScionConfig, console: Console, started: Callable[[], object] = lambda: None) -> None:
    """Runs a job, on the cluster of RAY_ADDRESS or on a Ray of its own.

    Args:
        started: called once Ray runs.
    """
    module = importlib.import_module(module_of(job))
    if not getattr(module, "needs_ray", lambda config: True)(loaded):
        module.main(loaded, console)
        return
    from cluster.session import ray_session
    from trainer.deepspeed_bridge.environment import prepare_environment

    prepare_environment()  # transformers imports DeepSpeed to save a model, where accelerate is installed
    session = partial(ray_session, workers=loaded.workers, worker_cpus=loaded.worker_cpus, min_workers=loaded.min_workers)
    with session(address=os.environ.get("RAY_ADDRESS"), say=console.print) as workers:
        started()
        module.main(replace(loaded, workers=workers), console)


def _check_writable(output: str) -> None:
    """Checks that the output can be written, before hours of work.

    Raises:
        ConfigError: it cannot.
    """
    try:
        storage.check_writable(output)
    except (OSError, ConfigError) as error:
        raise ConfigError(f"nothing can be written there ({reason(error)}).", f"output={output}", "Name another.") from error
