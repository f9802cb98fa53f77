"""Whether the pods hold what runs in them: workers, replicas, objects in shared memory, and the time of a last checkpoint."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from cluster.validate.documents import Document, Finding, Path, at
from cluster.validate.maps import quantity
from cluster.validate.serving import overrides, serve_config

_OBJECTS = Decimal("0.3")
"""Share of a node's memory that Ray takes for objects, in /dev/shm."""
_READER_CPUS = 1
"""CPUs that `cluster.capacity` asks for besides the workers."""
_MARGIN_SECONDS = 30
"""Time for Ray to end, after the preStop hook."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the pods of a group have for tasks."""

    pods: int
    """At most."""
    least_pods: int
    cpus: int
    gpus: int

    def fits(self, cpus: float, gpus: float) -> int:
        """How many workers or replicas of this size the group holds."""
        most = [int(have // need) for have, need in ((self.cpus, cpus), (self.gpus, gpus)) if need]
        return self.pods * min(most, default=0)


def check(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Findings on sizes and times of a document of KubeRay."""
    groups = [(path, group, room(group, path)) for path, group in document.groups()]
    if document.kind == "RayJob":
        yield from _workers(document, documents, [one for _, _, one in groups])
    if document.kind == "RayService":
        yield from _replicas(document, [one for _, _, one in groups])
    for path, group, _ in groups:
        yield from _memory(document, path, group)
        yield from _time(document, path, group)


def room(group: dict[str, Any], path: Path) -> Room:
    """What a group has for tasks, by what Ray reads from it."""
    resources = at(group, ("template", "spec", "containers", 0, "resources"), {})
    limits, requests = (resources.get(key) or {} for key in ("limits", "requests"))
    options, own = group.get("rayStartParams") or {}, group.get("resources") or {}
    cpus = own.get("CPU", options.get("num-cpus", limits.get("cpu", requests.get("cpu", 0))))
    gpus = own.get("GPU", options.get("num-gpus", sum(int(quantity(v) or 0) for k, v in limits.items() if k.endswith("/gpu"))))
    is_head = path[-1] == "headGroupSpec"
    hosts = group.get("numOfHosts", 1)
    return Room(
        pods=1 if is_head else group["maxReplicas"] * hosts,
        least_pods=1 if is_head else group["minReplicas"] * hosts,
        cpus=math.ceil(quantity(cpus) or 0),
        gpus=int(quantity(gpus) or 0),
    )


def _workers(document: Document, documents: Sequence[Document], rooms: Sequence[Room]) -> Iterator[Finding]:
    """The training workers of the run, each with a GPU where there are GPUs."""
    settings, where = _settings(document, documents), ("spec", "entrypoint")
    workers, cpus = settings.get("workers"), float(settings.get("worker_cpus") or 1)
    has_gpus = any(one.gpus for one in rooms)
    if workers in (None, "auto"):
        if any(one.gpus and one.least_pods < one.pods for one in rooms):
            fix = "Add workers=N to the entry point."
            yield document.found(where, "workers=auto counts the GPUs that are there, and the autoscaler adds some later.", fix)
        return
    held = sum(one.fits(cpus, float(has_gpus)) for one in rooms)
    if int(workers) > held:
        size = f"{cpus:g} CPU{'s' * (cpus != 1)}" + (" and a GPU" if has_gpus else "")
        fix = "Lower workers, raise maxReplicas or the size of the pods."
        yield document.found(where, f"the groups hold {held} workers of {size}, the run has {workers}.", fix)
    have = sum(one.pods * one.cpus for one in rooms)
    if (needed := int(workers) * cpus + _READER_CPUS) > have:
        fix = "Raise maxReplicas, or the CPUs of the pods."
        yield document.found(where, f"the groups have {have} CPUs, workers and the reading of data need {needed:g}.", fix)


def _settings(document: Document, documents: Sequence[Document]) -> dict[str, Any]:
    """The top-level settings of a run: those of the configuration that its entry point names, and its overrides."""
    entrypoint = str(at(document.content, ("spec", "entrypoint"), ""))
    found: dict[str, Any] = {}
    for one in documents:
        for name, text in (at(one.content, ("data",), None) or {}).items() if one.kind == "ConfigMap" else ():
            if any(word.endswith(f"/{name}") for word in entrypoint.split()) and _mounts(document, one.name):
                content = yaml.safe_load(text)
                found |= content if isinstance(content, dict) else {}
    return found | overrides(entrypoint)


def _mounts(document: Document, config: str) -> bool:
    volumes = [one for _, template in document.pods() for one in template["spec"].get("volumes") or []]
    return any((one.get("configMap") or {}).get("name") == config for one in volumes)


def _replicas(document: Document, rooms: Sequence[Room]) -> Iterator[Finding]:
    """The replicas of the endpoint."""
    for place, application in enumerate(serve_config(document).get("applications", [])):
        given = application.get("args", {})
        replicas, cpus, gpus = given.get("replicas", 1), given.get("cpus_per_replica") or 1, float(given.get("gpu", False))
        if replicas > (held := sum(one.fits(cpus, gpus) for one in rooms)):
            size = f"{cpus} CPU{'s' * (cpus != 1)}" + (" and a GPU" if gpus else "")
            where = ("spec", "serveConfigV2", "applications", place, "args", "replicas")
            yield document.found(
                where,
                f"the groups hold {held} replicas of {size}, {replicas} are asked for.",
                "Lower it, or raise maxReplicas.",
            )


def _memory(document: Document, path: Path, group: dict[str, Any]) -> Iterator[Finding]:
    """Memory that Kubernetes promises, and shared memory that holds Ray's objects."""
    pod = at(group, ("template", "spec"), {})
    resources, where = at(pod, ("containers", 0, "resources"), {}), (*path, "template", "spec")
    asked, most = (quantity((resources.get(key) or {}).get("memory")) for key in ("requests", "limits"))
    if most is None or asked != most:
        fix = "Give both the same value: a pod that takes more than it asked for is evicted first."
        yield document.found((*where, "containers", 0, "resources"), "requests.memory and limits.memory differ.", fix)
        return
    mounts = {one["mountPath"]: one["name"] for one in at(pod, ("containers", 0, "volumeMounts"), [])}
    volumes = {one["name"]: one for one in pod.get("volumes") or []}
    shared = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir") or {}
    size = quantity(shared.get("sizeLimit"))
    if shared.get("medium") != "Memory" or size is None:
        fix = "Mount an emptyDir of medium Memory there, with a sizeLimit."
        yield document.found(where, "/dev/shm has 64 MiB, and Ray writes its objects to the disk.", fix)
    elif not _OBJECTS * most <= size < most:
        fix = f"Between 30 % and all of the memory of the pod, {resources['limits']['memory']}."
        yield document.found(
            (*where, "volumes"), f"/dev/shm has {shared['sizeLimit']}, Ray wants 30 % of the memory for objects.", fix
        )


def _time(document: Document, path: Path, group: dict[str, Any]) -> Iterator[Finding]:
    """The preStop hook, in which the last checkpoint is written, ends before the pod is killed."""
    pod, where = at(group, ("template", "spec"), {}), (*path, "template", "spec")
    command = at(pod, ("containers", 0, "lifecycle", "preStop", "exec", "command"), [])
    seconds = next((int(word) for word in command if str(word).isdigit()), None)
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if seconds is None:
        fix = "Add lifecycle.preStop with cluster.kuberay.pre_stop."
        yield document.found((*where, "containers", 0), "trainings lose what they did since the last checkpoint.", fix)
    elif grace < seconds + _MARGIN_SECONDS:
        fix = f"Write {seconds + _MARGIN_SECONDS} or more."
        yield document.found((*where, "terminationGracePeriodSeconds"), f"{grace} s end before preStop, {seconds} s.", fix)
    environment = yaml.safe_load(at(document.content, ("spec", "runtimeEnvYAML"), "{}")) if document.kind == "RayJob" else {}
    waits = int(at(environment, ("env_vars", "RAY_JOB_STOP_WAIT_TIME_S"), 3 if document.kind == "RayJob" else 0))
    if document.kind == "RayJob" and seconds is not None and not seconds <= waits <= grace and path[-1] == "headGroupSpec":
        fix = f"Write {seconds}, as in preStop."
        what = f"RAY_JOB_STOP_WAIT_TIME_S is {waits}: Ray kills the driver after it, and no checkpoint is written."
        yield document.found(("spec", "runtimeEnvYAML"), what, fix)
