"""Settings that changed while a run was stopped, and the record of them."""

from dataclasses import fields, replace
from typing import Any

from data_pipeline.artifacts import artifact
from data_pipeline.errors import TrainingError
from trainer.checkpoints.state import RunState
from trainer.config.train import RateChange, TrainConfig

_GUARD = ("spike", "rate_changes")
"""A user who changes these knows why the run rolled back."""


def adjustable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that may change when a run resumes and that it records, as JSON."""
    names = [spec.name for spec in fields(config) if spec.metadata.get("adjustable")]
    return {name: artifact.to_json(getattr(config, name)) for name in names}


def adopt_settings(state: RunState, config: TrainConfig) -> dict[str, Any] | None:
    """Gives a restored state the present settings. Returns the change, which is appended to `state.changes`, if there is one.

    `from_the_start` says whether the finished steps had the rates that the present settings give them: then the run ends as one
    that had these settings from the start.

    Raises:
        TrainingError: the run has done more steps than it is to have.
    """
    if state.next_step > config.steps:
        raise TrainingError(
            f"the run has done {state.next_step} steps already, more than {config.steps}.",
            "train.steps",
            f"Set at least {state.next_step}, or export an earlier checkpoint: `scion export RUN STEP`.",
        )
    before, state.settings = state.settings, adjustable_settings(config)
    changed = {name: [before[name], now] for name, now in state.settings.items() if name in before and before[name] != now}
    if not changed or state.next_step == 0:
        return None
    if any(name in changed for name in _GUARD):
        state.skips = [replace(skip, counts=False) for skip in state.skips]
    # The ZeRO stage has no part in the rates, and the present settings may not go with the earlier stage.
    rates = {name: value for name, value in before.items() if name != "zero_stage"}
    then = replace(config, **{**rates, "rate_changes": tuple(RateChange(**one) for one in before["rate_changes"])})
    same = all(then.rate(step, True) == config.rate(step, True) for step in range(state.next_step))
    change = {"step": state.next_step, "settings": changed, "from_the_start": same}
    state.changes.append(change)
    return change


def describe(change: dict[str, Any]) -> str:
    """A change in one line for the user."""
    names = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in change["settings"].items())
    rates = "" if change["from_the_start"] else "; earlier steps had the rates of the earlier settings"
    return f"resumes at step {change['step']} with {names}{rates}"
