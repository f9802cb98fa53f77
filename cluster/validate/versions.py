"""One version of Ray: that of the documents, of the image and of what is installed or locked."""

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path as File

from cluster.validate.documents import Document, Finding

PLACEHOLDER = "scion"
"""The image of the base, which `images:` of a kustomization replaces."""
_CONSTRAINTS = File(__file__).parents[2] / "constraints.txt"
_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[^\s@]+:([\w][\w.-]{0,127})")


def check(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Findings on versions of Ray, and on images that may change under a running cluster."""
    if (found := document.cluster()) is not None:
        path, spec = found
        ours, given = locked(), spec.get("rayVersion")
        if given != ours:
            yield document.found((*path, "rayVersion"), f"is {given}, Scion is locked to Ray {ours}.", f"Write {ours}.")
    for where, container in document.containers():
        image = container.get("image", "")
        if image == PLACEHOLDER or _DIGEST.fullmatch(image):
            continue
        tag = _TAG.fullmatch(image)
        if tag is None or tag[1] == "latest":
            fix = "Name it by digest, IMAGE@sha256:..., or by a tag other than latest."
            yield document.found((*where, "image"), f"{image or 'no image'} may be another one on each node.", fix)
        elif (ray := _ray_of(image, tag[1])) is not None and ray != locked():
            yield document.found((*where, "image"), f"{image} has Ray {ray}, Scion is locked to {locked()}.", "Build it anew.")


def locked() -> str:
    """The version of Ray in constraints.txt, or the installed one where Scion is installed without it."""
    if _CONSTRAINTS.is_file() and (found := re.search(r"^ray==(\S+)$", _CONSTRAINTS.read_text(encoding="utf-8"), re.M)):
        return found[1]
    return version("ray")


def _ray_of(image: str, tag: str) -> str | None:
    """The version of Ray that a tag names: `rayproject/ray:2.60.0-py311`, `scion:0.1.0-ray2.60.0`."""
    is_ray = image.rpartition(":")[0].rpartition("/")[2] in ("ray", "ray-ml", "ray-llm")
    found = re.match(r"\d+\.\d+\.\d+", tag) if is_ray else re.search(r"ray-?(\d+\.\d+\.\d+)", tag)
    return None if found is None else found[found.re.groups]
