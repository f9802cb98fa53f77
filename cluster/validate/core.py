"""Kubernetes' own kinds, by the schemas of the package kubernetes-validate, and their metadata."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from cluster.validate.documents import Document, Finding
from cluster.validate.schema import advice, explain, kinds, without_nulls

INSTALL = "pip install 'scion-lm[kubernetes]'"
VERSION = "1.34"
"""The version of Kubernetes whose schemas are used; the set needs 1.27 or newer, for the time zone of its CronJob."""
_METADATA = (
    "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName",
    "generation", "labels", "managedFields", "name", "namespace", "ownerReferences", "resourceVersion", "selfLink", "uid",
)  # fmt: skip
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_ROLES = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
"""Kinds whose names may hold nearly everything."""


def check(document: Document) -> Iterator[Finding]:
    """Findings on a document of Kubernetes' own kinds, and on the metadata of any document."""
    if not isinstance(document.content, dict):
        return
    yield from _metadata(document)
    if document.api_version.startswith("ray.io/") or not has_schema(document.api_version, document.kind):
        return
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document.content, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield document.found(tuple(error.absolute_path), *explain(error))


def is_installed() -> bool:
    """Whether kubernetes-validate, which holds the schemas of Kubernetes' own kinds, is installed."""
    return find_spec("kubernetes_validate") is not None


@cache
def has_schema(api_version: str, kind: str) -> bool:
    """Whether documents of this kind can be checked."""
    if api_version.startswith("ray.io/"):
        return kind in kinds()
    if not is_installed():
        return False
    import kubernetes_validate

    try:
        kubernetes_validate.validate({"apiVersion": api_version, "kind": kind}, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return False
    except kubernetes_validate.ValidationError:
        pass
    return True


def _metadata(document: Document) -> Iterator[Finding]:
    """Findings on the metadata, which the schemas of custom resources leave open."""
    metadata = without_nulls(document.content.get("metadata"))
    if not isinstance(metadata, dict):
        yield document.found(("metadata",), "metadata is missing.", "Add it, with a name.")
        return
    for key in metadata:
        if key not in _METADATA:
            yield document.found(("metadata",), f"there is no key {key}.", advice(key, _METADATA))
    if "name" not in metadata and "generateName" not in metadata:
        yield document.found(("metadata",), "name is missing.", "Add it.")
    for key in ("name", "namespace"):
        value = metadata.get(key, "a")
        pattern, most = (_LABEL, 63) if key == "namespace" or document.kind == "Namespace" else (_SUBDOMAIN, 253)
        is_free = key == "name" and document.kind in _ROLES
        if not isinstance(value, str) or (not is_free and (len(value) > most or not pattern.fullmatch(value))):
            fix = f"Use lower-case letters, digits and -, at most {most}."
            yield document.found(("metadata", key), f"{value!r} is no name of Kubernetes.", fix)
