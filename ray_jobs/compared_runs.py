"""The starts that `scion compare` compares: methods, and runs with other settings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_pipeline.errors import ConfigError
from ray_jobs.config.keys import check_folder_name
from ray_jobs.config.load import with_changes
from ray_jobs.config.schema import RUN_KEYS, ScionConfig
from trainer.transfer import chain

_WHERE = "compare.runs"
CONTROL = "random"
"""The baseline of the comparison."""


def compared_configs(config: ScionConfig) -> dict[str, ScionConfig]:
    """The configuration of each start, by its name.

    Raises:
        ConfigError: two equal names, a value out of its range, or curves with different steps.
    """
    found = {name: replace(config, method=name) for name in config.compare.methods}
    for place, run in enumerate(config.compare.runs):
        where = f"{_WHERE}[{place}]"
        own = with_changes(config, {key: run[key] for key in RUN_KEYS if key in run}, where)
        name = str(run.get("name") or own.method)
        check_folder_name(name, f"{where}.name")
        if name in found:
            raise ConfigError(f"two starts are called {name}.", where, "Give this one a name of its own.")
        if name == CONTROL and (own.method != CONTROL or set(run) - {"name", "method"}):
            raise ConfigError(
                f"{CONTROL} is the baseline, the random start with the settings of all.",
                f"{where}.name",
                "Give this one another name.",
            )
        _check_alike(config, own, where)
        found[name] = own
    return found


def run_descriptions(config: ScionConfig) -> dict[str, str]:
    """A line on each start: the paper of its method, and its own settings."""
    starts = compared_configs(config).items()
    found = {name: f"{'' if name == own.method else f'{own.method}: '}{chain.paper(own.method)}" for name, own in starts}
    for name, run in zip(list(found)[len(config.compare.methods) :], config.compare.runs, strict=True):
        own = [setting for key in ("transfer", "pretrain") for setting in _flat(run.get(key, {}), key)]
        found[name] = "; ".join([found[name], *own])
    return found


def _flat(value: Any, name: str) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{name}={value}"]
    return [setting for key, inner in value.items() for setting in _flat(inner, f"{name}.{key}")]


def _check_alike(config: ScionConfig, run: ScionConfig, where: str) -> None:
    """Checks that curves have the same points, on the same held-out rows."""
    ours, theirs = config.pretrain, run.pretrain
    points = {
        "train.steps": (ours.train.steps, theirs.train.steps),
        "train.evaluate_steps": (ours.train.evaluate_steps, theirs.train.evaluate_steps),
        "heldout_rows": (ours.heldout_rows, theirs.heldout_rows),
    }
    for key, (wanted, got) in points.items():
        if got != wanted:
            raise ConfigError(
                f"curves are compared at the same steps, on the same rows, but {got} is not {wanted}.",
                f"{where}.pretrain.{key}",
                f"Set pretrain.{key} for all runs.",
            )
    if run.transfer.plan is not None:
        raise ConfigError("a comparison makes its own plans.", f"{where}.transfer.plan", "Leave it out.")
