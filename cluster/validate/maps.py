"""Maps whose keys no schema lists: resources, labels, annotations, selectors, names of variables."""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from cluster.validate.documents import Document, Finding, Path, listed, mapped

_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[ -<>-~]+")
"""Kubernetes 1.30 and newer allow all printable ASCII but =."""
_FILE = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_FACTORS = {
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
    **{unit: Decimal(1000) ** power for power, unit in zip((-3, -2, -1, 1, 2, 3, 4, 5, 6), "numkMGTPE", strict=True)},
}
_LABELS = ("labels", "matchLabels", "nodeSelector")
_NATIVE = ("cpu", "memory", "ephemeral-storage", "storage")
_KNOWN = {
    "limits": (
        "nvidia.com/gpu", "amd.com/gpu", "google.com/tpu", "vpc.amazonaws.com/efa", "aws.amazon.com/neuron", "habana.ai/gaudi",
    ),
    "labels": (
        "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/component",
        "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by", "app.kubernetes.io/created-by", "ray.io/cluster",
        "ray.io/node-type", "ray.io/group", "ray.io/is-ray-node", "ray.io/identifier", "kubernetes.io/hostname",
        "kubernetes.io/arch", "kubernetes.io/os", "kubernetes.io/metadata.name", "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region", "node.kubernetes.io/instance-type", "nvidia.com/gpu.product",
        "kueue.x-k8s.io/queue-name",
    ),
    "annotations": (
        "ray.io/ft-enabled", "cluster-autoscaler.kubernetes.io/safe-to-evict", "prometheus.io/scrape", "prometheus.io/port",
    ),
}  # fmt: skip
"""Keys that stand for something, by the kind of the map; a key that differs in one character is a typo."""
_OF_USERS = ("data", "stringData", "binaryData", "args", "status")
"""Keys below which nothing is Kubernetes'."""


def check(document: Document) -> Iterator[Finding]:
    """Findings on the keys and values of free-form maps."""
    for path, key, value in _maps(document.content, ()):
        if key in _LABELS:
            yield from _labels(document, path, value)
        elif key == "annotations":
            yield from _annotations(document, path, value)
        elif key in ("limits", "requests"):
            yield from _resources(document, path, value)
    yield from _limits(document)
    yield from _environment(document)
    if document.kind in ("ConfigMap", "Secret"):
        yield from _files(document)


def check_near_misses(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Findings on keys that differ in one character from one that stands for something. Such keys are valid."""
    for path, key, value in _maps(document.content, ()):
        kind = {"requests": "limits", **dict.fromkeys(_LABELS, "labels")}.get(key, key)
        for name in value:
            near = [one for one in _KNOWN.get(kind, ()) if name != one and _distance_is_one(str(name), one)]
            if near and name not in _KNOWN[kind]:
                yield document.found((*path, name), f"{name} is not known.", f"Did you mean {near[0]}?")


def quantity(value: Any) -> Decimal | None:
    """The number that a quantity such as `500m` or `8Gi` stands for; None if it is none."""
    found = _QUANTITY.fullmatch(str(value).strip()) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if found is None:
        return None
    number, unit = found.groups(default="")
    try:
        return Decimal(number) * (
            Decimal(10) ** int(unit[1:]) if unit[:1] in ("e", "E") and unit[1:] and unit != "Ei" else _FACTORS[unit]
        )
    except (InvalidOperation, KeyError):
        return None


def _maps(content: Any, path: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """All maps that are called by a key, with their places."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if key in _OF_USERS and len(path) < 2:
            continue
        if isinstance(value, dict) and isinstance(key, str):
            yield (*path, key), key, value
        yield from _maps(value, (*path, key))


def _labels(document: Document, path: Path, labels: dict[str, Any]) -> Iterator[Finding]:
    """Keys and values of labels, and of what selects by them."""
    for key, value in labels.items():
        if key not in ("matchLabels", "matchExpressions"):
            yield from _qualified(document, path, key)
        if isinstance(value, str) and value and not (_NAME.fullmatch(value)):
            yield document.found(
                (*path, key), f"{value!r} is no value of a label.", "Use 63 letters, digits, -, _ and . at most."
            )
        elif not isinstance(value, str | None):
            yield document.found((*path, key), f"{value!r} is not text.", "Put it in quotes.")


def _annotations(document: Document, path: Path, annotations: dict[str, Any]) -> Iterator[Finding]:
    for key, value in annotations.items():
        yield from _qualified(document, path, key)
        if not isinstance(value, str | None):
            yield document.found((*path, key), f"{value!r} is not text.", "Put it in quotes.")


def _qualified(document: Document, path: Path, key: str) -> Iterator[Finding]:
    """A key of labels and annotations: a name, with the domain of who defines it in front."""
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix))):
        fix = "A key is NAME or DOMAIN/NAME, the name of 63 letters, digits, -, _ and . at most."
        yield document.found((*path, key), f"{key!r} is no key of labels and annotations.", fix)


def _resources(document: Document, path: Path, resources: dict[str, Any]) -> Iterator[Finding]:
    """Names of resources are Kubernetes' own, or have the domain of who defines them in front."""
    for name, value in resources.items():
        if name not in _NATIVE and not name.startswith("hugepages-") and "/" not in name:
            yield document.found((*path, name), f"there is no resource {name}.", f"Known: {', '.join(_NATIVE)}, DOMAIN/NAME.")
        elif "/" in name:
            yield from _qualified(document, path, name)
        if value is not None and (number := quantity(value)) is None:
            yield document.found((*path, name), f"{value!r} is no quantity.", "Write it as 500m, 2 or 8Gi.")
        elif value is not None and number is not None and number < 0:
            yield document.found((*path, name), f"{value!r} is below 0.", "Correct it.")


def _limits(document: Document) -> Iterator[Finding]:
    """Requests above limits, and devices, which have no request but the limit."""
    for path, container in document.containers():
        resources = mapped(container.get("resources"))
        limits, requests = (mapped(resources.get(key)) for key in ("limits", "requests"))
        for name in (*requests, *(name for name in limits if name not in requests)):
            asked, most = quantity(requests.get(name)), quantity(limits.get(name))
            where = (*path, "resources")
            if asked is not None and most is not None and asked > most:
                yield document.found(
                    (*where, "requests", name), f"{requests[name]} is above the limit, {limits[name]}.", "Raise the limit."
                )
            if "/" in name and asked is not None and asked != most:
                fix = f"Set limits.{name} to {requests[name]}."
                yield document.found((*where, "requests", name), "a device is requested by its limit.", fix)
            if "/" in name and most is not None and most % 1:
                yield document.found((*where, "limits", name), "devices are whole.", "Write a whole number.")


def _environment(document: Document) -> Iterator[Finding]:
    """Names of variables."""
    for path, container in document.containers():
        for place, one in enumerate(listed(container.get("env"))):
            name = one.get("name") if isinstance(one, dict) else None
            if isinstance(name, str) and not _VARIABLE.fullmatch(name):
                yield document.found(
                    (*path, "env", place, "name"), f"{name!r} is no name of a variable.", "Use letters, digits and _."
                )


def _files(document: Document) -> Iterator[Finding]:
    """Keys and values of ConfigMaps and Secrets."""
    for section in ("data", "stringData", "binaryData"):
        for key, value in mapped(document.content.get(section)).items():
            if not _FILE.fullmatch(key):
                yield document.found((section, key), f"{key!r} is no name of a file.", "Use letters, digits, -, _ and .")
            if not isinstance(value, str):
                yield document.found((section, key), f"{value!r} is not text.", "Put it in quotes.")


def _distance_is_one(first: str, second: str) -> bool:
    """Whether one character is missing, added or another one, or two neighbours have changed places."""
    if abs(len(first) - len(second)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    ours, theirs = first[start:], second[start:]
    return (
        ours[1:] == theirs[1:]
        or ours[1:] == theirs
        or ours == theirs[1:]
        or (ours[:2] == theirs[:2][::-1] and ours[2:] == theirs[2:])
    )
