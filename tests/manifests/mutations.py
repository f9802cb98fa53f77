"""Ways to break a set of documents, each as it happens to people, and the place that a finding must name."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

Documents = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change that breaks the set."""

    what: str
    apply: Callable[[Documents], None]
    place: str
    """Part of the document and path of a finding."""

    def broken(self, documents: Documents) -> Documents:
        """A broken copy."""
        changed = deepcopy(documents)
        self.apply(changed)
        assert changed != documents, self.what
        return changed


def _get(documents: Documents, kind: str, name: str = "") -> dict[str, Any]:
    return next(one for one in documents if one["kind"] == kind and name in one["metadata"]["name"])


def _spec(documents: Documents) -> dict[str, Any]:
    spec: dict[str, Any] = _get(documents, "RayJob", "pretrain")["spec"]
    return spec


def _pod(documents: Documents, group: int = -1) -> dict[str, Any]:
    """The pod of a worker group of the RayJob `pretrain`."""
    pod: dict[str, Any] = _spec(documents)["rayClusterSpec"]["workerGroupSpecs"][group]["template"]["spec"]
    return pod


def _container(documents: Documents) -> dict[str, Any]:
    container: dict[str, Any] = _pod(documents)["containers"][0]
    return container


def _serve(old: str, new: str) -> Callable[[Documents], None]:
    def apply(documents: Documents) -> None:
        spec = _get(documents, "RayService")["spec"]
        assert old in spec["serveConfigV2"], old
        spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)

    return apply


def _entrypoint(old: str, new: str) -> Callable[[Documents], None]:
    def apply(documents: Documents) -> None:
        assert old in _spec(documents)["entrypoint"], old
        _spec(documents)["entrypoint"] = _spec(documents)["entrypoint"].replace(old, new)

    return apply


def _without(documents: Documents, kind: str, name: str = "") -> None:
    documents.remove(_get(documents, kind, name))


def _halve_gpus(documents: Documents) -> None:
    for part in _container(documents)["resources"].values():
        part["nvidia.com/gpu"] = "4"


def _open_only_8001(documents: Documents) -> None:
    rule = next(one for one in _get(documents, "NetworkPolicy")["spec"]["ingress"] if "from" not in one)
    rule["ports"] = [{"port": 8001, "protocol": "TCP"}]


def _both_ways_of_deletion(documents: Documents) -> None:
    rule = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}
    _spec(documents)["deletionStrategy"] = {"onSuccess": {"policy": "DeleteCluster"}, "deletionRules": [rule]}


MUTATIONS = (
    Mutation("another version of Ray", lambda d: _spec(d)["rayClusterSpec"].update(rayVersion="2.59.0"), "rayVersion"),
    Mutation(
        "an image with another Ray", lambda d: _container(d).update(image="team/scion:1.0-ray2.52.0"), "containers[0].image"
    ),
    Mutation("an image without a tag", lambda d: _container(d).update(image="team/scion:latest"), "containers[0].image"),
    Mutation(
        "an application that is not there", _serve("cluster.serve.app:app", "cluster.serve.app:application"), "import_path"
    ),
    Mutation("a setting of the endpoint that is not there", _serve("replicas:", "replica:"), "args.replica"),
    Mutation("more replicas than fit", _serve("replicas: 2", "replicas: 2000"), "args.replicas"),
    Mutation("a value that Serve refuses", _serve("EveryNode", "AllNodes"), "proxy_location"),
    Mutation("a job that is not there", _entrypoint("ray_jobs.pretrain", "ray_jobs.pretrian"), "spec.entrypoint"),
    Mutation("a configuration that is not there", _entrypoint("run.yaml", "runs.yaml"), "spec.entrypoint"),
    Mutation("more workers than GPUs", _halve_gpus, "spec.entrypoint"),
    Mutation("an account that is not there", lambda d: _pod(d).update(serviceAccountName="scion-pods"), "serviceAccountName"),
    Mutation("a ConfigMap that is missing", lambda d: _without(d, "ConfigMap"), "configMap.name"),
    Mutation("a priority that is missing", lambda d: _without(d, "PriorityClass", "training"), "priorityClassName"),
    Mutation(
        "a number in place of text",
        lambda d: _spec(d)["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "num-cpus",
    ),
    Mutation(
        "an option that `ray start` does not have",
        lambda d: _spec(d)["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpu": "0"}),
        "num-cpu",
    ),
    Mutation(
        "no time for the checkpoint",
        lambda d: _pod(d).update(terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds",
    ),
    Mutation("a driver that is killed early", lambda d: _spec(d).update(runtimeEnvYAML="env_vars: {}"), "runtimeEnvYAML"),
    Mutation("no shared memory", lambda d: _container(d).update(volumeMounts=_container(d)["volumeMounts"][:1]), "spec"),
    Mutation("a limit below the request", lambda d: _container(d)["resources"]["limits"].update(memory="8Gi"), "resources"),
    Mutation("a port that the policy closes", _open_only_8001, "NetworkPolicy"),
    Mutation(
        "a selector that selects nothing",
        lambda d: _get(d, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(
            {"app.kubernetes.io/instance": "other"}
        ),
        "PodDisruptionBudget",
    ),
    Mutation("a controller that CEL refuses", lambda d: _spec(d).update(managedBy="me"), "managedBy"),
    Mutation("two ways of deletion, which CEL refuses", _both_ways_of_deletion, "deletionStrategy"),
    Mutation(
        "a pod that runs as root",
        lambda d: _pod(d).update(securityContext={"seccompProfile": {"type": "RuntimeDefault"}}),
        "securityContext",
    ),
    Mutation(
        "a key in the document", lambda d: _container(d)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}), "env["
    ),
    Mutation("a variable twice", lambda d: _container(d)["env"].append({"name": "HOME", "value": "/"}), "env["),
    Mutation("a list where a map stands", lambda d: _container(d).update(resources=[]), "resources"),
    Mutation(
        "more replicas at least than at most",
        lambda d: _spec(d)["rayClusterSpec"]["workerGroupSpecs"][-1].update(minReplicas=99),
        "workerGroupSpecs",
    ),
    Mutation("a label that is too long", lambda d: _get(d, "RayJob")["metadata"]["labels"].update({"a": "x" * 64}), "labels.a"),
    Mutation("a quantity with a blank", lambda d: _container(d)["resources"]["limits"].update(memory="512 Gi"), "memory"),
    Mutation(
        "a RoleBinding without a namespace", lambda d: _get(d, "RoleBinding")["subjects"][0].pop("namespace"), "subjects[0]"
    ),
    Mutation(
        "a volume that is not there",
        lambda d: _container(d)["volumeMounts"].append({"name": "data", "mountPath": "/data"}),
        "volumeMounts",
    ),
    Mutation("a copy of a RayJob that is not there", lambda d: _without(d, "RayJob", "pretrain"), "CronJob"),
    Mutation("the same name twice", lambda d: d.append(deepcopy(_get(d, "RayService"))), "metadata.name"),
)
