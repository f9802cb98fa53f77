"""Types and keys of KubeRay's custom resources, by the schemas of their definitions (CRDs).

The schemas are those of KubeRay 1.7.0, `kuberay-1.7.0.json` (NOTICE says where they come from). An API server reads them in its
own way, which three changes give to jsonschema: keys whose value is null are dropped; a required property with a default may be
left out; and no key but those listed is allowed.
"""

import difflib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path as File
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from cluster.validate.documents import Document, Finding
from data_pipeline.errors import ConfigError

API_VERSION = "ray.io/v1"
_FILE = File(__file__).parent / "kuberay-1.7.0.json"
_COMBINED = ("anyOf", "allOf", "oneOf")


def check(document: Document) -> Iterator[Finding]:
    """Findings on types, missing and unknown keys of a document of KubeRay; none for other kinds."""
    if not isinstance(document.content, dict) or not document.kind or not document.api_version:
        yield Finding(document.title, "", "a document has apiVersion and kind.", "Add them.")
        return
    if not document.api_version.startswith("ray.io/"):
        return
    if document.kind not in kinds():
        yield document.found(("kind",), "KubeRay has no such kind.", f"Known: {', '.join(sorted(kinds()))}.")
    elif document.api_version != API_VERSION:
        yield document.found(("apiVersion",), f"{document.api_version} is not served any more.", f"Write {API_VERSION}.")
    else:
        content = without_nulls(document.content)
        if "spec" not in content:
            yield document.found((), "spec is missing.", "Add it.")
        for error in validator(document.kind).iter_errors(content):
            yield document.found(tuple(error.absolute_path), *explain(error))


def without_nulls(content: Any) -> Any:
    """The content as an API server stores it: without keys whose value is null."""
    if isinstance(content, dict):
        return {key: without_nulls(value) for key, value in content.items() if value is not None}
    return [without_nulls(one) for one in content] if isinstance(content, list) else content


@cache
def kinds() -> dict[str, Any]:
    """The schemas by kind, as they were published."""
    return dict(_published()["kinds"])


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """A schema, or the published one that it refers to."""
    while "$ref" in node:
        node = _published()["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


@cache
def validator(kind: str) -> Draft202012Validator:
    """The validator of a kind, with closed objects."""
    definitions = {name: _closed(node) for name, node in _published()["$defs"].items()}
    return Draft202012Validator({**_closed(kinds()[kind]), "$defs": definitions})


@cache
def _published() -> dict[str, Any]:
    try:
        return dict(json.loads(_FILE.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError("the schemas are missing.", str(_FILE), "Install Scion anew.") from error


def _closed(node: Any) -> Any:
    """The schema with the second and the third change."""
    if not isinstance(node, dict):
        return node
    closed = dict(node)
    if "properties" in node:
        closed["properties"] = {name: _closed(one) for name, one in node["properties"].items()}
        closed.setdefault("additionalProperties", bool(node.get("x-kubernetes-preserve-unknown-fields", False)))
    if isinstance(node.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(node["additionalProperties"])
    if "items" in node:
        closed["items"] = _closed(node["items"])
    for key in _COMBINED:
        if key in node:
            closed[key] = [_closed(one) for one in node[key]]
    defaults = {name for name, one in node.get("properties", {}).items() if "default" in resolve(one)}
    if "required" in node:
        closed["required"] = [name for name in node["required"] if name not in defaults]
    return closed


def explain(error: ValidationError) -> tuple[str, str]:
    """What is wrong, and what to do."""
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {})
        unknown = sorted(set(error.instance) - set(known))
        return f"there is no key {', '.join(unknown)}.", advice(unknown[0], known)
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))
        return f"{', '.join(missing)} is missing.", "Add it."
    if error.validator == "type":
        fix = "Put it in quotes." if error.validator_value == "string" and isinstance(error.instance, int | float) else ""
        return f"{error.instance!r} is not of type {error.validator_value}.", fix
    if error.validator == "anyOf":
        return f"{error.instance!r} is neither a whole number nor text.", "Put it in quotes."
    return f"{error.message}.", ""


def advice(name: str, known: Any) -> str:
    """The key that `name` probably means."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known))}."
