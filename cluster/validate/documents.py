"""Documents of Kubernetes: how they are read, what is in them, and what is found in them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from data_pipeline.errors import ConfigError
from data_pipeline.unique_keys import UniqueKeyLoader

Path = tuple[str | int, ...]
_CLUSTERS = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}
"""Where a kind of KubeRay holds the description of a cluster."""
_TEMPLATES = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "RayJob": ("spec", "submitterPodTemplate"),
    "RayCronJob": ("spec", "jobTemplate", "submitterPodTemplate"),
    "Pod": (),
}
"""Where a kind holds a template of a pod, besides that cluster."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong in a document."""

    document: str
    path: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.document}: {self.path}: " if self.path else f"{self.document}: "
        return f"{place}{self.what}{' ' + self.fix if self.fix else ''}"


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document, of any form."""

    content: Any

    @property
    def kind(self) -> str:
        return str(self._value("kind"))

    @property
    def api_version(self) -> str:
        return str(self._value("apiVersion"))

    @property
    def name(self) -> str:
        return str(at(self.content, ("metadata", "name"), ""))

    @property
    def namespace(self) -> str:
        return str(at(self.content, ("metadata", "namespace"), ""))

    @property
    def title(self) -> str:
        """How findings call it."""
        return f"{self.kind}/{self.name or '(without a name)'}"

    def found(self, path: Path, what: str, fix: str = "") -> Finding:
        """A finding at a place of this document."""
        return Finding(self.title, dotted(path), what, fix)

    def cluster(self) -> tuple[Path, dict[str, Any]] | None:
        """The description of a Ray cluster, and its place."""
        path = _CLUSTERS.get(self.kind) if self.api_version.startswith("ray.io/") else None
        spec = None if path is None else at(self.content, path)
        return (path, spec) if path is not None and isinstance(spec, dict) else None

    def groups(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The groups of a Ray cluster, the head first, and their places."""
        if (found := self.cluster()) is None:
            return
        path, spec = found
        if isinstance(head := spec.get("headGroupSpec"), dict):
            yield (*path, "headGroupSpec"), head
        for place, group in enumerate(listed(spec.get("workerGroupSpecs"))):
            if isinstance(group, dict):
                yield (*path, "workerGroupSpecs", place), group

    def pods(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The templates of pods, each with `metadata` and `spec`, and their places."""
        path = _TEMPLATES.get(self.kind)
        template = None if path is None else at(self.content, path)
        if path is not None and isinstance(template, dict) and isinstance(template.get("spec"), dict):
            yield path, template
        for group_path, group in self.groups():
            if isinstance(template := group.get("template"), dict) and isinstance(template.get("spec"), dict):
                yield (*group_path, "template"), template

    def containers(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The containers of all pods, and their places."""
        for path, template in self.pods():
            for key in ("initContainers", "containers"):
                for place, container in enumerate(listed(template["spec"].get(key))):
                    if isinstance(container, dict):
                        yield (*path, "spec", key, place), container

    def _value(self, key: str) -> Any:
        return self.content.get(key, "") if isinstance(self.content, dict) else ""


def at(content: Any, path: Path, default: Any = None) -> Any:
    """The value at a path, or `default` where there is none."""
    for step in path:
        is_key = isinstance(content, dict) and step in content
        is_place = isinstance(content, list) and isinstance(step, int) and step < len(content)
        if not (is_key or is_place):
            return default
        content = content[step]
    return content


def mapped(value: Any) -> dict[str, Any]:
    """The value if it is a map; a value of another type, which `schema` reports, is an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """The value if it is a list; a value of another type, which `schema` reports, is an empty one."""
    return value if isinstance(value, list) else []


def dotted(path: Path) -> str:
    """A path as people write it: `spec.workerGroupSpecs[0].replicas`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


class _Loader(UniqueKeyLoader):
    """Reads YAML as kubectl does: dates are text, and a repeated key is refused."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [
            (tag, pattern) for tag, pattern in found if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
        ]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(text: str, name: str) -> list[Any]:
    """The documents of a YAML or JSON text, also those of a `List`.

    Args:
        name: the file, for errors.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        loaded = [one for one in yaml.load_all(text, Loader=_Loader) if one is not None]
        found = json.loads(json.dumps(loaded))  # keys become text, and what aliases share becomes copies
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines())
        raise ConfigError(f"it is not YAML ({reason}).", name, "Correct it.") from error
    lists = [one["items"] if isinstance(one, dict) and one.get("kind") == "List" and "items" in one else [one] for one in found]
    return [one for part in lists for one in part]
