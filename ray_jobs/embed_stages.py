"""Trainings before the last one: `embed.stages`, each from the model of the one before, on pairs of its own."""

from dataclasses import replace
from typing import Any, NamedTuple

from data_pipeline.errors import ConfigError
from ray_jobs.config.keys import check_folder_name
from ray_jobs.config.load import with_changes
from ray_jobs.config.schema import STAGE_KEYS, ScionConfig


class Before(NamedTuple):
    """The training before another."""

    folder: str
    """Of its artefact, below the chain's."""
    config: ScionConfig


def before(config: ScionConfig) -> Before | None:
    """The training whose model a training starts from; None if it starts from the pretrained model or `embed.model`.

    A stage has the settings of the last training, but for its own, and mines no negatives.

    Raises:
        ConfigError: two stages of one name, or a value out of its range.
    """
    if not config.embed.stages:
        return None
    *earlier, last = config.embed.stages
    where = f"embed.stages[{len(earlier)}]"
    name = str(last.get("name") or "")
    check_folder_name(name, f"{where}.name")
    if name in [stage.get("name") for stage in earlier]:
        raise ConfigError(f"two stages are called {name}.", where, "Give this one a name of its own.")
    own: dict[str, Any] = {key: last[key] for key in STAGE_KEYS if key in last}
    own["embed"] = {"mined": False} | dict(own.get("embed") or {}) | {"stages": list(earlier)}
    # A section of names replaces that of the last training: its tasks may be others.
    named: dict[str, Any] = {key: {} for key in ("weights", "prompts") if key in own["embed"]}
    changed = with_changes(replace(config, embed=replace(config.embed, **named)), own, where)
    if changed.embed.mined:
        raise ConfigError("negatives are mined for the last training only.", f"{where}.embed.mined", "Leave it out.")
    return Before(folder=f"embed-{name}", config=changed)


def every(config: ScionConfig, folder: str) -> list[Before]:
    """All trainings in order, the last one with its own folder."""
    found, one = [], Before(folder, config)
    while True:
        found.append(one)
        earlier = before(one.config)
        if earlier is None:
            return found[::-1]
        one = earlier
