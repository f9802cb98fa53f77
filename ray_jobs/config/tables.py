"""From the tables of the library to sections of the configuration: a field of settings for each row."""

import difflib
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import Any, Protocol

from data_pipeline.artifacts import artifact
from data_pipeline.errors import ConfigError


class Entry(Protocol):
    """A row of any table."""

    @property
    def config(self) -> type[Any]:
        """The dataclass of its settings."""
        ...


def sections(name: str, table: Mapping[str, Entry]) -> Any:
    """A dataclass called `name` with a section for each row, so that one YAML can hold the settings of several."""
    fields = [(row, entry.config, field(default_factory=entry.config)) for row, entry in table.items()]
    return make_dataclass(name, fields, frozen=True, kw_only=True)


def check(name: str, table: Mapping[str, Any], where: str) -> None:
    """Checks that a table has a row of this name.

    Raises:
        ConfigError: it has none; names the nearest.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        choices = f"Choose one of: {', '.join(sorted(table))}."
        raise ConfigError(f"{name!r} is not in the table.", where, f"Did you mean {near[0]!r}? {choices}" if near else choices)


def identity(key: str, name: str, settings: Any, default: str) -> dict[str, Any]:
    """What a choice from a table adds to the identity of an artefact.

    The default's settings stand alone, as in artefacts from before the table. Any other row names itself around its settings,
    which may be called as keys of the section are.
    """
    return identities(key, {name: settings}, default)


def identities(key: str, chosen: Mapping[str, Any], default: str) -> dict[str, Any]:
    """As `identity`, of several rows by name."""
    own = {name: artifact.identity(settings) for name, settings in chosen.items()}
    return own[default] if list(own) == [default] else {key: own}
