"""From YAML and the command line to dataclasses. The only file that imports OmegaConf."""

import glob
import importlib.metadata
import math
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, ScionError, mask_passwords
from ray_jobs.config import keys, yaml_text
from ray_jobs.config.schema import AUTO, RUN_KEYS, RUN_RULE, STAGE_KEYS, STAGE_RULE, ScionConfig
from ray_jobs.job import jobs
from trainer.transfer import chain
from trainer.transfer.methods import METHODS

_PATHS = ("text", "test_text", "pairs", "test_pairs", "source_model", "tokenizer")
_MINED = ("model", "corpus", "teacher")
_HEAD = b"# What this run was given, written by Scion.\n"
_REQUIRED = ("text", "source_model", "output")
_PLACES = ("submit", "kubernetes")
"""Sections that say where a job is sent to."""


_PARTIAL = {"compare.runs": (RUN_KEYS, RUN_RULE), "embed.stages": (STAGE_KEYS, STAGE_RULE)}
"""Lists of parts of configurations: the keys of an item, and a rule for errors."""


def load(path: str | None, overrides: list[str], job: str = "pipeline", values: Mapping[str, Any] | None = None) -> ScionConfig:
    """Reads a YAML file, applies `key=value` overrides, then `values`, and decides what is `auto`.

    Keys without a default that `job` does not need are empty.

    Raises:
        ConfigError: no such file, a key that does not exist (names the nearest), a value of the wrong type, or a missing key.
    """
    if path is not None and not Path(path).is_file():
        raise ConfigError("no such file.", path, "Name a YAML file, e.g. ray_jobs/conf/demo.yaml.")
    where = path or "the configuration"
    wrong = [item for item in overrides if "=" not in item]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is not key=value.", "command line", "Write e.g. output=/tmp/run.")
    try:
        file = OmegaConf.create() if path is None else _from_file(path)
        sources = ((file, f"{path}: "), (_from_overrides(overrides), ""), (_from_python(values or {}), ""))
        parts = [_check_types(_normalise(part), prefix) for part, prefix in sources]
        given = OmegaConf.merge(OmegaConf.structured(ScionConfig), *parts)
        missing = [name for name in _REQUIRED if OmegaConf.is_missing(given, name)]
        needed = [name for name in missing if name in jobs()[job].required_keys(lambda key: OmegaConf.select(given, key))]
        if needed:
            others = "".join(f", or {name}=..." for name in jobs()[job].instead)
            raise ConfigError(f"{', '.join(needed)} must be given.", where, f"Add `{needed[0]}:` or {needed[0]}=...{others}")
        config = _to_dataclasses(OmegaConf.merge(given, dict.fromkeys(missing, "")))
        for name in (*_PATHS, "output", "shards"):
            if getattr(config, name) == "" and name not in missing:
                raise ConfigError("it is empty.", name, "Name a file or folder, or leave the key out.")
    except ScionError:
        raise
    except OmegaConfBaseException as error:
        raise _reference_error(error, where) from error
    except Exception as error:  # a YAML that cannot be parsed; PyYAML's errors are not OmegaConf's
        raise ConfigError(f"cannot be read ({_first_line(error)}).", where, "Correct the YAML.") from error
    assert isinstance(config, ScionConfig)
    return _decide_auto(config)


def _to_dataclasses(given: Any) -> Any:
    """The dataclasses. Errors name the section: two sections have a `train`."""
    try:
        return OmegaConf.to_object(given)
    except ConfigError as error:
        raise _section_error(given, ScionConfig, "") or error from None


def _section_error(given: Any, section: type, prefix: str) -> ConfigError | None:
    """The error of the innermost section that raises one, with the section's name."""
    for name, hint in typing.get_type_hints(section).items():
        if not (is_dataclass(hint) and isinstance(hint, type)) or name not in given:
            continue
        if inner := _section_error(given[name], hint, f"{prefix}{name}."):
            return inner
        try:
            OmegaConf.to_object(given[name])
        except ConfigError as found:
            own = f"{prefix}{name}"
            where = found.where if found.where.startswith(own.partition(".")[0] + ".") else own
            return ConfigError(found.what, where, found.fix)
    return None


def with_changes(config: ScionConfig, changes: Mapping[str, Any], where: str) -> ScionConfig:
    """The configuration with other values, given in sections as in YAML.

    Raises:
        ConfigError: a value out of its range; the message begins with `where`.
    """
    part = _type_items(_normalise(OmegaConf.create(dict(changes))), ScionConfig)
    try:
        found = _to_dataclasses(OmegaConf.merge(OmegaConf.structured(config), part))
    except ConfigError as error:
        raise ConfigError(error.what, f"{where}.{error.where}", error.fix) from None
    assert isinstance(found, ScionConfig)
    return with_absolute_paths(_decide_auto(found))


def _decide_auto(config: ScionConfig) -> ScionConfig:
    """Replaces `auto` by methods, and names the model that mines where another one is embedded."""
    suitable = [
        name
        for name, entry in METHODS.items()
        if entry.learns_from != "donor"
        and (config.pairs or not chain.needs_pairs(name, partial(getattr, config.transfer.methods)))
    ]
    if config.mine.model is None and config.embed.model is not None:
        config = replace(config, mine=replace(config.mine, model=config.embed.model))
    compared = config.compare.methods or (() if config.compare.runs else (AUTO,))
    methods = dict.fromkeys(name for given in compared for name in (suitable if given == AUTO else [given]))
    method = ("focus" if config.pairs is None else "ramen") if config.method == AUTO else config.method
    return replace(config, method=method, compare=replace(config.compare, methods=tuple(methods)))


def _from_file(path: str) -> Any:
    return OmegaConf.create(yaml_text.parse(Path(path).read_text(encoding="utf-8")) or {})


def _from_overrides(overrides: list[str]) -> Any:
    given = OmegaConf.create()
    for item in overrides:
        key, _, value = item.partition("=")
        OmegaConf.update(given, key, yaml_text.parse_value(value))
    return given


def _from_python(values: Mapping[str, Any]) -> Any:
    return OmegaConf.create({key: _plain(value, key) for key, value in values.items()})


def _plain(value: Any, key: str) -> Any:
    """A Python value as YAML has it: a path as text, NumPy's numbers as Python's.

    Raises:
        ConfigError: YAML has no such value; names the key.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(one, f"{key}.{name}") for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{key}[{place}]") for place, one in enumerate(value)]
    raise ConfigError(f"expected text, a number, a list or a dict, got {type(value).__name__}.", key)


def _normalise(given: Any) -> Any:
    """Names chains of methods and losses, `aligned+focus` for `[aligned, focus]`, and makes a number that is `auto` null."""
    if not OmegaConf.is_dict(given):
        return given
    if given.get("workers") == AUTO:
        given.workers = None
    for section, name in ((given, "method"), (given.get("embed"), "objective")):
        if OmegaConf.is_dict(section) and OmegaConf.is_list(section.get(name)):
            section[name] = "+".join(map(str, section[name]))
    compared = given.get("compare")
    if OmegaConf.is_dict(compared) and OmegaConf.is_list(compared.get("methods")):
        compared.methods = ["+".join(map(str, one)) if OmegaConf.is_list(one) else one for one in compared.methods]
    return given


def _check_types(given: Any, where: str) -> Any:
    """Checks that each key exists and each value has its type, and gives list items their types.

    Raises:
        ConfigError: names the first that does not.
    """
    for name, hint, value in keys.values(OmegaConf.to_container(given), ScionConfig, where):
        if name in _PARTIAL and isinstance(value, list):
            _check_parts(value, f"{where}{name}", *_PARTIAL[name])
        if value == MISSING or _has_reference(value):
            continue
        one = make_dataclass("One", [("value", hint, MISSING)])
        try:
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(one), {"value": value}))
        except OmegaConfBaseException as error:
            wanted, got = keys.type_name(hint), keys.yaml_value(value)
            raise ConfigError(f"expected {wanted}, got {got}.", f"{where}{name}") from error
        if not _is_finite(value):
            raise ConfigError(f"expected a finite number, got {keys.yaml_value(value)}.", f"{where}{name}")
    return _type_items(given, ScionConfig)


def _check_parts(parts: list[Any], where: str, known: tuple[str, ...], rule: str) -> None:
    """Checks that each item is a part of a configuration, with a name, of `known` keys."""
    for place, part in enumerate(parts):
        if not isinstance(part, dict):
            raise ConfigError(f"expected a section, got {keys.yaml_value(part)}.", f"{where}[{place}]", rule)
        for key in set(part) - {"name", *known}:
            raise ConfigError("there is no such key here.", f"{where}[{place}].{key}", rule)
        _check_types(_normalise(OmegaConf.create({key: part[key] for key in known if key in part})), f"{where}[{place}].")


def _has_reference(value: Any) -> bool:
    """Whether a value holds a reference to another key, which only the whole configuration resolves."""
    if isinstance(value, dict | list):
        return any(map(_has_reference, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and "${" in value


def _is_finite(value: Any) -> bool:
    """Whether all numbers in a value are finite. Comparisons with NaN are false, so that no check of a range finds it."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _type_items(given: Any, section: type) -> Any:
    """Gives the items of `tuple[SomeDataclass, ...]` their types; OmegaConf 2.4 leaves them untyped."""
    for name, hint in typing.get_type_hints(section).items():
        if not OmegaConf.is_dict(given) or name not in given:
            continue
        if is_dataclass(hint) and isinstance(hint, type):
            _type_items(given[name], hint)
        elif (inner := keys.item_type(hint)) is not None and OmegaConf.is_list(given[name]):
            given[name] = [OmegaConf.merge(OmegaConf.structured(inner), one) for one in given[name]]
    return given


def with_absolute_paths(config: ScionConfig) -> ScionConfig:
    """Makes local paths absolute: workers run in other directories."""
    of_evaluation = tuple(config.evaluate.files)
    for section, names in (("embed", ("model", "teacher")), ("mine", _MINED), ("evaluate", of_evaluation)):
        part = getattr(config, section)
        config = replace(config, **{section: replace(part, **_absolute(part, names))})
    for section, name in (("drift", "versions"), ("evaluate", "models")):
        part = getattr(config, section)
        uris = {one: storage.absolute(uri) if _on_disk(uri) else uri for one, uri in getattr(part, name).items()}
        config = replace(config, **{section: replace(part, **{name: uris})})
    found = _absolute(config, _PATHS)
    # These are paths even if they do not exist yet.
    found |= {name: storage.absolute(value) for name in ("output", "shards") if (value := getattr(config, name))}
    return replace(config, **found)


def _absolute(section: Any, names: Iterable[str]) -> dict[str, Any]:
    """The absolute paths of those settings that name existing files."""
    values = {name: getattr(section, name) for name in names}
    return {name: storage.absolute(value) for name, value in values.items() if value is not None and _on_disk(value)}


def to_yaml(config: ScionConfig) -> str:
    """The resolved configuration as it is written beside a run, without passwords and keys that the job did not need.

    Where it was submitted is left out: it is nothing of the run, and may hold secrets.
    """
    given = OmegaConf.structured(config)
    needed = OmegaConf.masked_copy(
        given, [name for name in given if name not in _PLACES and (name not in _REQUIRED or given[name])]
    )
    return str(mask_passwords(OmegaConf.to_yaml(needed)))


def save_config(config: ScionConfig) -> None:
    """Writes `OUTPUT/config.yaml`. Keeps a file of that name that Scion did not write."""
    uri = config.at("config.yaml")
    if not storage.exists(uri) or storage.read_bytes(uri).startswith(_HEAD):
        storage.write_bytes(uri, _HEAD + to_yaml(config).encode())


def to_dict(config: ScionConfig) -> dict[str, Any]:
    """The configuration as plain values, without passwords."""
    return dict(mask_passwords(asdict(config)))


def _on_disk(spec: str) -> bool:
    """Whether a path or glob names an existing file; names of datasets and hub models do not."""
    return "://" not in spec and bool(glob.glob(os.path.expanduser(spec), recursive=True))


def _reference_error(error: OmegaConfBaseException, path: str) -> ConfigError:
    """The error of a `${...}`; keys and types are checked before."""
    message = next(line.strip() for line in str(error).splitlines() if line.strip())
    key = f"{path}: {error.full_key}" if error.full_key else path
    fix = "Correct the ${...}: ${KEY} is another key, ${oc.env:NAME} a variable of the environment."
    return ConfigError(f"its value cannot be found ({message}).", key, fix)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def package_folder(name: str, folder: str) -> str:
    """`${package:NAME,FOLDER}`: a folder inside an installed distribution."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError("the package is not installed.", f"package:{name}", f"pip install {name}") from error
    inside = [file for file in files if f"/{folder}/" in f"/{file}"]
    if not inside:
        raise ConfigError(f"the package has no folder {folder}.", f"package:{name}", "Check the folder's name.")
    path = str(inside[0].locate())
    return path[: path.rindex(f"/{folder}/") + len(folder) + 1]


OmegaConf.register_resolver("package", package_folder, replace=True)
