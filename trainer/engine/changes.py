"""Settings that changed while a run was stopped: what it goes on with, and the record that it keeps."""

from dataclasses import fields, replace
from typing import Any

from data_pipeline.artifacts import artifact
from data_pipeline.errors import TrainingError
from trainer.checkpoints.restore import RunState
from trainer.config.train import RateChange, TrainConfig

_GUARD = ("spike", "rate_changes")
"""Whoever changes these has looked at why the run went back."""


def adjustable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run may change when it goes on and of which it keeps a record, as JSON has them."""
    names = [spec.name for spec in fields(config) if spec.metadata.get("adjustable")]
    return {name: artifact.to_json(getattr(config, name)) for name in names}


def adopt_settings(state: RunState, config: TrainConfig) -> dict[str, Any] | None:
    """Gives a state that was restored the present settings; what changed, which `state.changes` then holds.

    `from_the_start` says whether the steps that are done had the rates that these settings give them: then the run ends as one
    that had these settings from the start.

    Raises:
        TrainingError: more steps are done than the run is to have.
    """
    if state.next_step > config.steps:
        raise TrainingError(
            f"the run has done {state.next_step} steps already, and is to have {config.steps}.",
            "train.steps",
            f"Give it at least {state.next_step}, or take a model out of an earlier checkpoint: `scion export RUN STEP`.",
        )
    before, state.settings = state.settings, adjustable_settings(config)
    changed = {name: [before[name], now] for name, now in state.settings.items() if name in before and before[name] != now}
    if not changed or state.next_step == 0:
        return None
    if any(name in changed for name in _GUARD):
        state.skips = [replace(skip, counts=False) for skip in state.skips]
    # The stage has no part in the rates, and other settings of now may not go with that of before.
    rates = {name: value for name, value in before.items() if name != "zero_stage"}
    then = replace(config, **{**rates, "rate_changes": tuple(RateChange(**one) for one in before["rate_changes"])})
    same = all(then.rate(step, True) == config.rate(step, True) for step in range(state.next_step))
    change = {"step": state.next_step, "settings": changed, "from_the_start": same}
    state.changes.append(change)
    return change


def describe(change: dict[str, Any]) -> str:
    """A change in words."""
    names = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in change["settings"].items())
    rates = "" if change["from_the_start"] else "; the steps before had the rates of the settings before"
    return f"goes on from step {change['step']} with {names}{rates}"
