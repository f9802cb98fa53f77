"""Names by which documents refer to others: what they name is in the set, or declared to be elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.validate.documents import Document, Finding, Path, at, listed, mapped

_BY_KUBERAY = ("ray.io/cluster", "ray.io/node-type", "ray.io/group", "ray.io/is-ray-node")
"""Labels that KubeRay adds to its pods."""
_BUILT_IN = ("PriorityClass/system-cluster-critical", "PriorityClass/system-node-critical", "ServiceAccount/default")
Reference = tuple[Path, str, str]
"""Where it stands, and the kind and the name of what it names."""


def check(documents: Sequence[Document], external: Sequence[str]) -> Iterator[Finding]:
    """Findings on names that lead nowhere, and on selectors that select nothing."""
    there = {f"{one.kind}/{one.name}": one for one in documents}
    for document in documents:
        for path, kind, name in _references(document):
            if f"{kind}/{name}" not in (*there, *external, *_BUILT_IN):
                fix = f"Add the {kind}, correct the name, or give --external {kind}/{name}."
                yield document.found(path, f"there is no {kind} {name}.", fix)
        yield from _keys(document, there)
        yield from _mounts(document)
        yield from _selectors(document, documents)
        if document.kind == "RoleBinding":
            yield from _subjects(document)


def _references(document: Document) -> Iterator[Reference]:
    """All names of other documents that are not optional."""
    for path, template in document.pods():
        spec, where = template["spec"], (*path, "spec")
        for key, kind in (("serviceAccountName", "ServiceAccount"), ("priorityClassName", "PriorityClass")):
            if spec.get(key):
                yield (*where, key), kind, spec[key]
        for place, volume in enumerate(spec.get("volumes") or []):
            yield from _of_volume(volume, (*where, "volumes", place))
    for path, container in document.containers():
        for place, source in enumerate(container.get("envFrom") or []):
            yield from _of_sources(source, (*path, "envFrom", place), ("configMapRef", "secretRef"))
        for place, variable in enumerate(container.get("env") or []):
            sources = variable.get("valueFrom") or {}
            yield from _of_sources(sources, (*path, "env", place, "valueFrom"), ("configMapKeyRef", "secretKeyRef"))
    if document.kind == "RoleBinding":
        yield from _of_binding(document.content)
    if document.kind == "CronJob":
        yield from _template(document)


def _of_binding(binding: dict[str, Any]) -> Iterator[Reference]:
    """The role and the accounts of a RoleBinding."""
    role = mapped(binding.get("roleRef"))
    yield ("roleRef", "name"), str(role.get("kind")), str(role.get("name"))
    for place, subject in enumerate(map(mapped, listed(binding.get("subjects")))):
        if subject.get("kind") == "ServiceAccount":
            yield ("subjects", place, "name"), "ServiceAccount", str(subject.get("name"))


def _template(document: Document) -> Iterator[Reference]:
    """The RayJob of which `cluster.kuberay.nightly` makes copies."""
    for path, container in document.containers():
        command = container.get("command") or []
        if "cluster.kuberay.nightly" in command and command[-1] != "cluster.kuberay.nightly":
            yield (*path, "command"), "RayJob", command[-1]


def _of_volume(volume: dict[str, Any], path: Path) -> Iterator[Reference]:
    """What a volume is made from, unless it may be missing."""
    for key, kind, field in (
        ("configMap", "ConfigMap", "name"),
        ("secret", "Secret", "secretName"),
        ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
    ):
        if (source := volume.get(key)) and not source.get("optional"):
            yield (*path, key, field), kind, source.get(field, "")


def _of_sources(source: dict[str, Any], path: Path, keys: Sequence[str]) -> Iterator[Reference]:
    for key in keys:
        if (named := source.get(key)) and not named.get("optional"):
            yield (*path, key, "name"), "ConfigMap" if key.startswith("configMap") else "Secret", named.get("name", "")


def _keys(document: Document, there: dict[str, Document]) -> Iterator[Finding]:
    """Files below a mounted ConfigMap that a job's entrypoint names, and that are not in it."""
    entrypoint = str(at(document.content, ("spec", "entrypoint"), ""))
    for _, template in document.pods():
        volumes = {one["name"]: one for one in template["spec"].get("volumes") or []}
        for container in template["spec"].get("containers") or []:
            for mount in container.get("volumeMounts") or []:
                name = (volumes.get(mount["name"], {}).get("configMap") or {}).get("name")
                if (config := there.get(f"ConfigMap/{name}")) is None:
                    continue
                files = [
                    word.removeprefix(f"{mount['mountPath']}/")
                    for word in entrypoint.split()
                    if word.startswith(f"{mount['mountPath']}/")
                ]
                for file in files:
                    if file not in (config.content.get("data") or {}):
                        known = ", ".join(config.content.get("data") or {})
                        yield document.found(
                            ("spec", "entrypoint"), f"ConfigMap {name} has no file {file}.", f"It has {known}."
                        )
                        return


def _mounts(document: Document) -> Iterator[Finding]:
    """Mounts of volumes that their pod does not have."""
    for path, template in document.pods():
        volumes = [one["name"] for one in template["spec"].get("volumes") or []]
        for place, container in enumerate(template["spec"].get("containers") or []):
            for number, mount in enumerate(container.get("volumeMounts") or []):
                if mount["name"] not in volumes:
                    where = (*path, "spec", "containers", place, "volumeMounts", number, "name")
                    yield document.found(
                        where, f"the pod has no volume {mount['name']}.", f"It has {', '.join(volumes) or 'none'}."
                    )


def _selectors(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Selectors of a policy or a budget that no pod of the set fits."""
    if document.kind not in ("NetworkPolicy", "PodDisruptionBudget"):
        return
    pods = [template.get("metadata", {}).get("labels", {}) for one in documents for _, template in one.pods()]
    for path, wanted in _wanted(document.content, ()):
        ours = {name: value for name, value in wanted.items() if name not in _BY_KUBERAY}
        if not any(ours.items() <= labels.items() for labels in pods):
            shown = ", ".join(f"{name}={value}" for name, value in wanted.items())
            yield document.found(path, f"no pod of the set has {shown}.", "Correct the labels.")


def _wanted(content: Any, path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The labels by which pods of this namespace are selected."""
    if isinstance(content, list):
        for place, one in enumerate(content):
            yield from _wanted(one, (*path, place))
    elif isinstance(content, dict) and "namespaceSelector" not in content:
        for key, value in content.items():
            if key in ("podSelector", "selector"):
                yield (*path, key, "matchLabels"), mapped(mapped(value).get("matchLabels"))
            else:
                yield from _wanted(value, (*path, key))


def _subjects(document: Document) -> Iterator[Finding]:
    for place, subject in enumerate(map(mapped, listed(document.content.get("subjects")))):
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            yield document.found(("subjects", place), "Kubernetes refuses an account without its namespace.", "Add namespace.")
