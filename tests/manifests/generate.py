"""Documents of KubeRay that are valid by construction: random walks through the published schemas."""

import random
from typing import Any

from cluster.validate.ray_options import options
from cluster.validate.schema import kinds, resolve

_DEPTH = 9
_WORDS = ("alpha", "beta-2", "gamma.x", "d3")
_TEXTS = {
    "rayVersion": "2.52.0", "image": "rayproject/ray:2.52.0", "runtimeEnvYAML": "env_vars: {A: b}",
    "entrypointResources": '{"Custom": 1.5}', "serveConfigV2": "applications: [{name: a, import_path: 'm:app'}]",
    "managedBy": "ray.io/kuberay-operator", "entrypoint": "python train.py", "reason": "Reason",
}  # fmt: skip
"""Texts that are more than text."""


def document(draw: random.Random) -> dict[str, Any]:
    """A RayCluster, RayJob, RayService or RayCronJob with random parts."""
    kind = draw.choice(sorted(kinds()))
    content = _value(kinds()[kind]["properties"]["spec"], "spec", draw, 0)
    _keep_rules(content)
    labels = {f"example.com/{word}": word for word in draw.sample(_WORDS, draw.randrange(3))}
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": draw.choice(_WORDS), "labels": labels},
        "spec": content,
    }


def _value(node: dict[str, Any], name: str, draw: random.Random, depth: int) -> Any:
    """A value of a schema. Optional parts become rarer with depth."""
    node = resolve(node)
    if "enum" in node:
        return draw.choice(node["enum"])
    if "anyOf" in node:  # a port or a quantity
        return draw.choice([1, 8080, "2"])
    kind = node.get("type")
    if kind == "object":
        return _object(node, name, draw, depth)
    if kind == "array":
        count = 1 if node.get("minItems") or depth < 5 else draw.randrange(2)  # one item repeats no key
        return [_value(node["items"], name, draw, depth + 1) for _ in range(count)]
    if kind == "string":
        text = _TEXTS.get(name, draw.choice(_WORDS))
        return text if node.get("format") != "date-time" else "2026-11-28T00:00:00Z"
    return {"boolean": draw.choice([True, False]), "number": draw.choice([0.5, 1, 3.0])}.get(str(kind), draw.randrange(1, 1000))


def _object(node: dict[str, Any], name: str, draw: random.Random, depth: int) -> dict[str, Any]:
    if "additionalProperties" in node and "properties" not in node:
        return _map(name, draw)
    required = node.get("required", [])
    share = max(0.0, 1.0 - depth / _DEPTH)
    chosen = [key for key in node.get("properties", {}) if key in required or draw.random() < share]
    return {key: _value(node["properties"][key], key, draw, depth + 1) for key in chosen}


def _map(name: str, draw: random.Random) -> dict[str, Any]:
    """A free-form map."""
    if name in ("limits", "requests"):
        return draw.choice(
            [{}, {"cpu": 1}, {"memory": "1Gi", "example.com/device": "1"}, {"ephemeral-storage": "1e9", "cpu": "500m"}]
        )
    if name == "rayStartParams":
        of_types = {"integer": "1", "boolean": "true"}
        return {key: of_types.get(options()[key], "text") for key in draw.sample(sorted(options()), 3)}
    return {key: "1" for key in draw.sample([*_WORDS, "example.com/Some_Key"], draw.randrange(3))}


def _keep_rules(content: Any) -> None:
    """Leaves out what no type says: CEL, the order of bounds, and that a device is requested by its limit."""
    if isinstance(content, list):
        for one in content:
            _keep_rules(one)
    if not isinstance(content, dict):
        return
    for one in content.values():
        _keep_rules(one)
    if "deletionStrategy" in content:
        content["deletionStrategy"] = {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}
        content.pop("shutdownAfterJobFinishes", None)
        content.pop("ttlSecondsAfterFinished", None)
    if "groupName" in content and "template" in content:
        content |= {"minReplicas": 1, "maxReplicas": 2}
    if isinstance(content.get("limits"), dict) or isinstance(content.get("requests"), dict):
        content["requests"] = dict(content.get("limits") or {}) if isinstance(content.get("limits"), dict) else {"cpu": 1}
