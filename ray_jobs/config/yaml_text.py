"""YAML with the scalars of YAML 1.2 (sections 10.2 and 10.3), and without leading zeros in numbers.

PyYAML follows YAML 1.1, in which `no`, the tag of Norwegian, is false, `010` is eight, `12:30` is 750 and `2026-11-27` a date.
Here they are text; a number setting still parses text.
"""

import json
import re
from typing import Any, ClassVar

import yaml

from data_pipeline.unique_keys import UniqueKeyLoader

_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
"""Tags, their patterns, and the characters that they begin with."""


_LINE_ENDS = re.compile(r"[\r\x85\u2028\u2029]")
"""Ends of lines, which PyYAML would fold into blanks if they were not escaped."""


class _Loader(UniqueKeyLoader):
    """Reads the scalars of `_SCALARS`, and refuses repeated keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def parse(text: str) -> Any:
    """Parses a YAML document.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    found = yaml.load(text, Loader=_Loader)
    try:
        json.dumps(found, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        raise yaml.YAMLError(f"it holds half a character, {error.object[error.start]!r}") from error
    return found


def parse_value(text: str) -> Any:
    """Parses the value of `key=value` on the command line as YAML, or as text if it is not YAML, e.g. `*.parquet`."""
    try:
        return parse(text)
    except yaml.YAMLError:
        return text


def dump(content: Any) -> str:
    """The YAML of parsed content: `parse(dump(content)) == content`."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes that `parse` would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = "\n" in text or parse_value(text) == text
    style = '"' if _LINE_ENDS.search(text) else None if is_plain else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
