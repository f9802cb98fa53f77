"""The documents of one run on Kubernetes, from those of `base/`.

The same base as the overlays', without kustomize: the cluster of `interactive` becomes that of a RayJob or a RayService, and
names, sizes, image and storage are those of the run.
"""

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from cluster.capacity import DEFAULT_CPU_WORKERS
from cluster.kuberay.config import CLAIM_FOLDER, KubernetesConfig
from cluster.serve.config import ServeConfig
from cluster.validate import check
from cluster.validate.documents import Finding, read
from data_pipeline.errors import ConfigError

BASE = Path(__file__).parent / "base"
CONFIG = "/etc/scion/run.yaml"
"""Where the pods have the configuration of the run."""
_INSTANCE = "app.kubernetes.io/instance"
_SHARED_MEMORY = 5 / 16
"""Share of a pod's memory in /dev/shm: a little more than the 30 % that Ray takes for objects."""
_READER_CPUS = 1
_AROUND = (
    ("ServiceAccount", "scion-head"), ("ServiceAccount", "scion-pod"), ("PriorityClass", "scion-serving"),
    ("PriorityClass", "scion-training"), ("PodDisruptionBudget", "scion-head"), ("NetworkPolicy", "scion"),
    ("ConfigMap", "scion-run"),
)  # fmt: skip
"""Kinds and names of the documents around a RayJob or RayService."""
_GLOBAL = ("PriorityClass",)
"""Kinds without a namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the documents say of a run."""

    name: str
    """Of the RayJob or RayService, and the beginning of other names: lower-case letters, digits and -."""
    config: str
    """The YAML of the configuration."""
    settings: KubernetesConfig
    workers: int | None = None
    """None for one on each GPU, or `DEFAULT_CPU_WORKERS` without GPUs."""
    worker_cpus: float = 1.0
    endpoint: ServeConfig | None = None
    """What a RayService serves; None for a job."""


def build(run: Run) -> list[dict[str, Any]]:
    """The documents of a run, in the order in which they are to be applied.

    Raises:
        ConfigError: the image is missing, or the machines cannot hold the run.
    """
    _check_image(run.settings.image)
    workers = _workers(run)
    base = {(one["kind"], one["metadata"]["name"]): one for one in _base()}
    cluster = {key: value for key, value in base["RayCluster", "interactive"]["spec"].items() if key != "suspend"}
    _size(cluster, run.settings)
    if run.endpoint is None:
        main = base["RayJob", "pretrain"]
        main["spec"]["entrypoint"] = f"python -m ray_jobs.{run.settings.job} {CONFIG} workers={workers}"
        main["spec"]["rayClusterSpec"] = cluster
    else:
        main = base["RayService", "embedder"]
        main["spec"]["serveConfigV2"] = _serve_config(main["spec"]["serveConfigV2"], run.endpoint)
        main["spec"]["rayClusterConfig"] = cluster
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            group["template"]["spec"]["priorityClassName"] = "scion-serving"
    del main["spec"]["suspend"]
    base["ConfigMap", "scion-run"]["data"] = {"run.yaml": run.config}
    documents = [*(base[one] for one in _AROUND), main]
    _rename(documents, run)
    for pod in _pods(main["spec"]):
        _adapt_pod(pod, run)
    return documents


def findings(documents: list[dict[str, Any]], settings: KubernetesConfig) -> list[Finding]:
    """What `cluster.validate` says about the documents of a run."""
    external = [f"Secret/{settings.secret}", f"PersistentVolumeClaim/{settings.claim}"]
    return check(documents, strict=True, external=external)


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML, with texts of several lines as blocks."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=128)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Puts what begins like a number into quotes: kubectl takes 1e3 for one, PyYAML does not."""
    style = "|" if "\n" in text else "'" if re.match(r"[-+.]?[0-9]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _base() -> Iterator[dict[str, Any]]:
    for path in sorted(BASE.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from deepcopy(read(path.read_text(encoding="utf-8"), str(path)))


def _check_image(image: str) -> None:
    """ConfigError for no image, or one that may differ from node to node."""
    fix = "Push an image of Scion to a registry that the machines reach, and set kubernetes.image=REGISTRY/scion@sha256:..."
    if not image:
        raise ConfigError("it must be given.", "kubernetes.image", fix)
    tag = re.search(r":([^/:@]+)$", image)
    if "@sha256:" not in image and (tag is None or tag[1] == "latest"):
        raise ConfigError(f"{image} may be another image on each machine.", "kubernetes.image", "Add a tag or a digest.")


def _workers(run: Run) -> int:
    """The number of workers, or of replicas.

    Raises:
        ConfigError: the machines have no room for them.
    """
    settings = run.settings
    if run.endpoint is not None:
        workers, cpus, has_gpus = run.endpoint.replicas, float(run.endpoint.cpus_per_replica or 1), run.endpoint.gpu
        key, what, reader = "serve.replicas", "replicas", 0
    else:
        has_gpus = settings.gpus > 0
        workers = run.workers or (settings.nodes * settings.gpus if has_gpus else DEFAULT_CPU_WORKERS)
        cpus, key, what, reader = run.worker_cpus, "workers", "workers", 0 if has_gpus else _READER_CPUS
    if has_gpus and not settings.gpus:
        raise ConfigError("serve.gpu needs machines with GPUs.", "kubernetes.gpus", "Set it, or serve.gpu=false.")
    size = _count(cpus, "CPU") + (" and a GPU" if has_gpus else "")
    machine = _count(settings.cpus, "CPU") + (f" and {_count(settings.gpus, 'GPU')}" if settings.gpus else "")
    each = min(int(settings.cpus // cpus), settings.gpus) if has_gpus else int(settings.cpus // cpus)
    if each == 0:
        fix = "Give machines with more CPUs, or set worker_cpus= (for an endpoint, serve.cpus_per_replica=)."
        raise ConfigError(f"no machine of {machine} holds one of the {what} with {size}.", "kubernetes.cpus", fix)
    room = settings.nodes * each
    if workers > room or workers * cpus + reader > settings.nodes * settings.cpus:
        nodes = max(-(-workers // each), int(-(-(workers * cpus + reader) // settings.cpus)))
        what = f"{workers} {what} with {size} each do not fit {_count(settings.nodes, 'machine')} of {machine}."
        raise ConfigError(what, key, f"Set kubernetes.nodes={nodes}, or lower {key}.")
    return workers


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'s' * (number != 1)}"


def _size(cluster: dict[str, Any], settings: KubernetesConfig) -> None:
    """Gives the group of the workers the machines of the run. Without GPUs, workers are in the group of the CPUs."""
    cpu, gpu = cluster["workerGroupSpecs"]
    group = gpu if settings.gpus else cpu
    resources = group["template"]["spec"]["containers"][0]["resources"]
    for amounts in resources.values():
        amounts |= {"cpu": str(settings.cpus), "memory": settings.memory}
        if settings.gpus:
            amounts["nvidia.com/gpu"] = str(settings.gpus)
    shared = next(one for one in group["template"]["spec"]["volumes"] if one["name"] == "shm")
    shared["emptyDir"]["sizeLimit"] = _shared_memory(settings.mebibytes)
    group["maxReplicas"] = settings.nodes
    cluster["workerGroupSpecs"] = [cpu, gpu] if settings.gpus else [cpu]


def _shared_memory(mebibytes: int) -> str:
    """The size of /dev/shm for a pod with so much memory."""
    size = int(mebibytes * _SHARED_MEMORY)
    return f"{size // 1024}Gi" if size % 1024 == 0 else f"{size}Mi"


def _serve_config(text: str, endpoint: ServeConfig) -> str:
    """The configuration of Serve, with the settings of the endpoint that are not the defaults."""
    default = ServeConfig()
    args = {
        one.name: getattr(endpoint, one.name)
        for one in fields(ServeConfig)
        if one.name not in ("host", "port") and getattr(endpoint, one.name) != getattr(default, one.name)
    }
    config = yaml.safe_load(text)
    config["http_options"]["port"] = default.port
    config["applications"][0]["args"] = json.loads(json.dumps(args))
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _rename(documents: list[dict[str, Any]], run: Run) -> None:
    """Gives what belongs to the run alone its name, label and namespace."""
    names = {"PodDisruptionBudget": f"{run.name}-head", "NetworkPolicy": run.name, "ConfigMap": f"{run.name}-run"}
    for document in documents:
        if document["kind"] in ("PriorityClass", "ServiceAccount"):  # all runs share these
            document["metadata"]["labels"].pop(_INSTANCE)
        else:
            document["metadata"]["name"] = names.get(document["kind"], run.name)
            _relabel(document, run.name)
        if run.settings.namespace and document["kind"] not in _GLOBAL:
            document["metadata"] = {
                "name": document["metadata"]["name"],
                "namespace": run.settings.namespace,
                **document["metadata"],
            }


def _relabel(content: Any, name: str) -> None:
    """Sets the label of the instance wherever it stands, in selectors too."""
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if isinstance(content, dict) and _INSTANCE in content:
        content[_INSTANCE] = name
    for one in values:
        _relabel(one, name)


def _pods(content: Any) -> Iterator[dict[str, Any]]:
    """The specifications of pods."""
    if isinstance(content, dict) and "containers" in content:
        yield content
    else:
        values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        for one in values:
            yield from _pods(one)


def _adapt_pod(pod: dict[str, Any], run: Run) -> None:
    """Sets image, configuration, credentials and the claim of a pod."""
    settings = run.settings
    container = pod["containers"][0]
    container["image"] = settings.image
    if "envFrom" not in container:  # the pod that submits a job reads and writes nothing
        return
    for volume in pod["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = f"{run.name}-run"
    if settings.secret:
        container["envFrom"][0] = {"secretRef": {"name": settings.secret}}
    if settings.claim:
        pod["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": settings.claim}})
        container["volumeMounts"].append({"name": "data", "mountPath": CLAIM_FOLDER})
