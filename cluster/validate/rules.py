"""Rules that an API server evaluates besides types: CEL (`x-kubernetes-validations`), and lists whose items have keys."""

from collections.abc import Callable, Iterator
from typing import Any

from cluster.validate.documents import Document, Finding, Path
from cluster.validate.schema import kinds, resolve, without_nulls

Holds = Callable[[Any], bool]
AT_CREATION: dict[str, Holds] = {
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": lambda one: (
        one in ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
    ),
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": lambda one: (
        not ("jobStatus" in one and "jobDeploymentStatus" in one)
    ),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": lambda one: "jobStatus" in one or "jobDeploymentStatus" in one,
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": lambda one: (
        not (("onSuccess" in one or "onFailure" in one) and "deletionRules" in one)
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": lambda one: (
        ("onSuccess" in one and "onFailure" in one) or "deletionRules" in one
    ),
}
"""The CEL rules of KubeRay's schemas, each with what it says."""
AT_UPDATE = ("self == oldSelf",)
"""Rules on two versions of a document; one alone keeps them."""


def check(document: Document) -> Iterator[Finding]:
    """Findings on a document of KubeRay by the rules of its schema, and by those of the operator."""
    if document.api_version.startswith("ray.io/") and document.kind in kinds() and isinstance(document.content, dict):
        yield from _walk(document, kinds()[document.kind], without_nulls(document.content), ())
        yield from _deletion(document)
        yield from _replicas(document)


def _walk(document: Document, node: dict[str, Any], value: Any, path: Path) -> Iterator[Finding]:
    """Goes through schema and document together."""
    node = resolve(node)
    for rule in node.get("x-kubernetes-validations", []):
        if rule["rule"] not in AT_UPDATE and not _holds(AT_CREATION[rule["rule"]], value):
            yield document.found(path, f"{rule['message'].rstrip('.')}.")
    if isinstance(value, dict):
        for key, inner in node.get("properties", {}).items():
            if key in value:
                yield from _walk(document, inner, value[key], (*path, key))
        if isinstance(extra := node.get("additionalProperties"), dict):
            for key in value:
                yield from _walk(document, extra, value[key], (*path, key))
    if isinstance(value, list) and "items" in node:
        yield from _repeated(document, node, value, path)
        for place, one in enumerate(value):
            yield from _walk(document, node["items"], one, (*path, place))


def _holds(rule: Holds, value: Any) -> bool:
    try:
        return rule(value)
    except TypeError:  # a value of another type, which `schema` reports
        return True


def _repeated(document: Document, node: dict[str, Any], items: list[Any], path: Path) -> Iterator[Finding]:
    """Items of a list with keys, or of a set, that occur twice: an API server refuses them."""
    kind, seen = node.get("x-kubernetes-list-type"), []
    names = node.get("x-kubernetes-list-map-keys", [])
    fields = resolve(node["items"]).get("properties", {})
    for place, one in enumerate(items):
        if kind == "map" and isinstance(one, dict):
            key: Any = tuple(one.get(name, fields.get(name, {}).get("default")) for name in names)
            shown = ", ".join(f"{name}={part}" for name, part in zip(names, key, strict=True))
        elif kind == "set":
            key, shown = one, str(one)
        else:
            continue
        if key in seen:
            yield document.found((*path, place), f"{shown} occurs twice in this list.", "Remove one.")
        seen.append(key)


def _deletion(document: Document) -> Iterator[Finding]:
    """The operator refuses deletionRules beside the older ways to delete a cluster."""
    specs = {"RayJob": ("spec",), "RayCronJob": ("spec", "jobTemplate")}
    if (path := specs.get(document.kind)) is None:
        return
    spec = document.content
    for step in path:
        spec = spec.get(step) if isinstance(spec, dict) else None
    strategy = spec.get("deletionStrategy") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(strategy, dict) or "deletionRules" not in strategy:
        return
    for key in ("shutdownAfterJobFinishes", "ttlSecondsAfterFinished"):
        if spec.get(key):
            yield document.found((*path, key), "it cannot stand beside deletionStrategy.deletionRules.", "Remove one of them.")


def _replicas(document: Document) -> Iterator[Finding]:
    """Groups that could have no valid number of replicas, or that share a name."""
    names: list[Any] = []
    for path, group in document.groups():
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if isinstance(least, int) and isinstance(most, int) and not 0 <= least <= most:
            yield document.found(path, f"minReplicas is {least} and maxReplicas {most}.", "Raise maxReplicas.")
        if "groupName" in group and group["groupName"] in names:
            yield document.found((*path, "groupName"), f"{group['groupName']} is the name of another group.", "Rename it.")
        names.append(group.get("groupName"))
