"""Checks documents of Kubernetes without a cluster: `python -m cluster.validate FILE...`.

`check` accepts any valid RayCluster, RayJob, RayService and RayCronJob of KubeRay 1.7, and documents of Kubernetes' own kinds.
`strict=True` adds what we ask of our own set: names that lead somewhere, one version of Ray, settings that the code accepts,
requests that hold the run, and locked-down pods.

The order of the checks: `schema` (types and keys), `core` (the same for Kubernetes' kinds), `rules` (CEL and lists with keys),
`maps` (free-form maps), `ray_options`; then, strictly, `references`, `versions`, `serving`, `sizes`, `security`.
"""

from collections.abc import Sequence
from typing import Any

from cluster.validate import core, maps, ray_options, references, rules, schema, security, serving, sizes, versions
from cluster.validate.documents import Document, Finding

_ALWAYS = (schema.check, core.check, rules.check, maps.check, ray_options.check, serving.check)
_STRICT = (versions.check, serving.check_ours, sizes.check, security.check, maps.check_near_misses)


def check(documents: Sequence[Any], *, strict: bool = False, external: Sequence[str] = ()) -> list[Finding]:
    """What is wrong with a set of documents that are applied together; empty if nothing is.

    Args:
        documents: parsed YAML, as `documents.read` returns it.
        strict: whether the documents are our own.
        external: `KIND/NAME` of what the documents may refer to without defining it.
    """
    known = [Document(one) for one in documents]
    findings = [finding for document in known for part in _ALWAYS for finding in part(document)]
    findings += _twice(known)
    if strict and not findings:  # the strict checks rely on the types
        known = [Document(schema.without_nulls(one)) for one in documents]
        findings += [finding for part in _STRICT for document in known for finding in part(document, known)]
        findings += references.check(known, external)
    return findings


def _twice(documents: Sequence[Document]) -> list[Finding]:
    """Documents of one kind and name: the second would overwrite the first."""
    names = [(one.kind, one.namespace, one.name) for one in documents]
    return [
        Finding(document.title, "metadata.name", "another document has this kind and name.", "Rename or remove one.")
        for place, document in enumerate(documents)
        if document.name and names[place] in names[:place]
    ]
