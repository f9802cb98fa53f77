"""What pods may do: no more than the profile `restricted` of Kubernetes, with a file system that cannot be written."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.validate.documents import Document, Finding, Path, at

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)S?$")
_WRITTEN = ("/tmp", "/dev/shm")


def check(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Findings on rights of pods, and on secrets that stand in a document."""
    for path, template in document.pods():
        yield from _pod(document, (*path, "spec"), template["spec"])
    for path, container in document.containers():
        yield from _container(document, (*path, "securityContext"), container.get("securityContext") or {})
        for place, variable in enumerate(container.get("env") or []):
            if _SECRET.search(variable["name"]) and variable.get("value"):
                where = (*path, "env", place)
                yield document.found(
                    where, f"{variable['name']} stands in the document.", "Put it into a Secret, and use secretRef."
                )
    if (found := document.cluster()) is not None:
        path, spec = found
        for group_path, group in document.groups():
            yield from _ray_pod(document, (*group_path, "template", "spec"), at(group, ("template", "spec"), {}))
        if spec.get("enableInTreeAutoscaling"):
            where = (*path, "autoscalerOptions", "securityContext")
            yield from _container(document, where, at(spec, ("autoscalerOptions", "securityContext"), {}))
    if document.kind == "Secret" and any((document.content.get(key) or {}) for key in ("data", "stringData")):
        yield document.found((), "a Secret is part of the set.", "Create it by itself, and keep it out of Git.")


def _pod(document: Document, path: Path, spec: dict[str, Any]) -> Iterator[Finding]:
    """Rights of a pod, and what it shares with its machine."""
    context = spec.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True:
        yield document.found((*path, "securityContext"), "the pod may run as root.", "Set runAsNonRoot: true.")
    if at(context, ("seccompProfile", "type")) not in ("RuntimeDefault", "Localhost"):
        yield document.found(
            (*path, "securityContext"), "all system calls are allowed.", "Set seccompProfile: {type: RuntimeDefault}."
        )
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield document.found((*path, key), "the pod shares it with its machine.", "Remove it.")
    if not spec.get("serviceAccountName"):
        yield document.found(path, "the pod has the rights of the namespace's default account.", "Set serviceAccountName.")


def _container(document: Document, path: Path, context: dict[str, Any]) -> Iterator[Finding]:
    if context.get("allowPrivilegeEscalation") is not False:
        yield document.found(path, "a process may gain rights.", "Set allowPrivilegeEscalation: false.")
    if context.get("readOnlyRootFilesystem") is not True:
        yield document.found(path, "the file system of the image can be written.", "Set readOnlyRootFilesystem: true.")
    if "ALL" not in at(context, ("capabilities", "drop"), []):
        yield document.found(path, "the container has capabilities.", "Set capabilities: {drop: [ALL]}.")


def _ray_pod(document: Document, path: Path, spec: dict[str, Any]) -> Iterator[Finding]:
    """Ray writes to two folders, and its first process does not reap."""
    mounts = [one["mountPath"] for one in at(spec, ("containers", 0, "volumeMounts"), [])]
    for folder in _WRITTEN:
        if folder not in mounts:
            yield document.found(
                (*path, "containers", 0, "volumeMounts"), f"Ray cannot write to {folder}.", "Mount an emptyDir."
            )
    if spec.get("shareProcessNamespace") is not True:
        fix = "Set shareProcessNamespace: true."
        yield document.found(path, "nothing reaps processes that have ended, and stopping a job waits for them.", fix)
