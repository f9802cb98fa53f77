"""`scion manifests CONFIG`: the documents of a run for Kubernetes and KubeRay."""

import re
import site
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from cluster.kuberay.config import CLAIM_FOLDER
from data_pipeline.errors import ConfigError, mask_passwords
from data_pipeline.sources.models import is_path
from ray_jobs.config import yaml_text
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import Command, check_job

COMMAND = Command(
    arguments="CONFIG [FOLDER] [key=value ...]",
    summary="the documents of a run for Kubernetes (KubeRay), into FOLDER or to the standard output",
)
_FILES = ("text", "test_text", "pairs", "test_pairs", "source_model", "tokenizer", "embed.model", "serve.model")
_ENDINGS = (".parquet", ".jsonl", ".txt")
_BEGINNINGS = ("/", "./", "../", "~")
_FOLDERS = ("output", "shards")
_LOCAL = ("file://", "local://")
_NAME_LENGTH = 40
"""KubeRay appends to the name of a RayJob, and a name has 63 characters at most."""


def command(arguments: list[str], console: Console) -> None:
    """Writes the documents, and says how to apply them.

    Raises:
        ConfigError: the arguments are not those of `COMMAND`, or pods could not run the configuration.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(
            "the configuration file is missing.", "scion manifests", f"Usage: scion manifests {COMMAND.arguments}"
        )
    path, *rest = arguments
    folder, overrides = (rest[0], rest[1:]) if rest and "=" not in rest[0] else (None, rest)
    config = load(path, overrides, _job(path, overrides))
    _check_paths(config)
    from cluster.kuberay import manifests  # imports Ray, for which a mistake should not wait

    name = run_name(path, config.kubernetes.job)
    run = manifests.Run(
        name=name,
        config=_config_text(path, overrides),
        settings=config.kubernetes,
        workers=config.workers,
        worker_cpus=config.worker_cpus,
        endpoint=_endpoint(config) if config.kubernetes.job == "serve" else None,
    )
    documents = manifests.build(run)
    if wrong := manifests.findings(documents, config.kubernetes):
        raise ConfigError(f"{wrong[0]}", "kubernetes", f"{len(wrong)} findings of cluster.validate in all.")
    head = f"# Written by `scion manifests {path}`. To start the run: kubectl apply -f {folder or '-'}\n"
    if folder is None:
        console.print(head + "---\n".join(map(manifests.to_yaml, documents)), end="", markup=False)
    else:
        _write(Path(folder), head, documents, manifests.to_yaml)
        console.print(f"wrote {len(documents)} documents; kubectl apply -f {folder} starts {name}", markup=False)


def run_name(path: str, job: str) -> str:
    """The name of a run on Kubernetes, from its file: `My Run.yaml` and `pretrain` are `my-run-pretrain`."""
    stem = "-".join(re.findall(r"[a-z0-9]+", Path(path).stem.lower()))
    stem = (stem if not stem or stem[0].isalpha() else f"run-{stem}")[: _NAME_LENGTH - len(job) - 1].strip("-")
    return f"{stem}-{job}".lstrip("-")


def _job(path: str, overrides: list[str]) -> str:
    """The job of the run, whose required keys `load` checks; ConfigError if there is none of that name."""
    given = [one.partition("=")[2] for one in overrides if one.startswith("kubernetes.job=")]
    if not given and Path(path).is_file():
        content = _parsed(path)
        section = content.get("kubernetes") if isinstance(content, Mapping) else None
        given = [str(section["job"])] if isinstance(section, Mapping) and "job" in section else []
    try:
        check_job(given[-1] if given else "pipeline")
    except ConfigError as error:
        raise ConfigError(error.what, "kubernetes.job", error.fix) from None
    return given[-1] if given else "pipeline"


def _parsed(path: str) -> Any:
    try:
        return yaml_text.parse(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):  # `load` reports it
        return None


def _check_paths(config: ScionConfig) -> None:
    """Checks that the pods find what the configuration names.

    Raises:
        ConfigError: a path of this machine.
    """
    for key, value in _local_paths(config):
        claim = config.kubernetes.claim
        if claim and Path(value).is_relative_to(CLAIM_FOLDER):
            continue
        if claim:
            fix = f"Name a URI, or a path below {CLAIM_FOLDER}, where the claim is mounted."
        else:
            fix = f"Name a URI such as s3://bucket/run, or set kubernetes.claim= and name a path below {CLAIM_FOLDER}."
        raise ConfigError("the pods share no disk with this machine.", f"{key}={value}", fix)


def _local_paths(config: ScionConfig) -> Iterator[tuple[str, str]]:
    """The keys that hold a path of this machine, but for files of installed packages, which the image has too."""
    installed = {sysconfig.get_path("purelib"), *site.getsitepackages()}
    for key, value in _texts(asdict(config), ""):
        if key.startswith(("kubernetes.", "submit.")) or ("://" in value and not value.startswith(_LOCAL)):
            continue
        is_there = "/" in value and Path(value).exists()
        is_named = key in _FOLDERS or (key in _FILES and (is_path(value) or Path(value).suffix in _ENDINGS))
        if (is_named or is_there or value.startswith(_BEGINNINGS)) and not any(map(Path(value).is_relative_to, installed)):
            yield key, value


def _texts(content: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """All texts of nested settings that are not empty, by their keys."""
    if isinstance(content, str) and content:
        yield prefix, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list | tuple) else ()
    for key, value in items:
        yield from _texts(value, f"{prefix}.{key}".lstrip("."))


def _config_text(path: str, overrides: list[str]) -> str:
    """The YAML for the pods: the file as it is, or with the values of the command line in it and without `submit`.

    Raises:
        ConfigError: it holds a password, which everybody who may read a ConfigMap would see.
    """
    text = Path(path).read_text(encoding="utf-8")
    content = yaml_text.parse(text) or {}
    if overrides or "submit" in content:
        for one in overrides:
            key, _, value = one.partition("=")
            _set(content, key.split("."), yaml_text.parse_value(value))
        content.pop("submit", None)  # nothing of the run, and may hold secrets
        text = yaml_text.dump(content)
    if mask_passwords(text) != text:
        fix = "Put it into the Secret of kubernetes.secret, and write ${oc.env:NAME} in its place."
        raise ConfigError("a password stands in it.", path, fix)
    return text


def _set(content: dict[str, Any], key: list[str], value: Any) -> None:
    for step in key[:-1]:
        inner = content.get(step)
        content[step] = inner if isinstance(inner, dict) else {}
        content = content[step]
    content[key[-1]] = value


def _endpoint(config: ScionConfig) -> Any:
    """The settings of the endpoint, with the embedder of the run where none is named."""
    return config.serve if config.serve.folders else replace(config.serve, model=config.at("embed"))


def _write(folder: Path, head: str, documents: list[dict[str, Any]], to_yaml: Any) -> None:
    """Writes a file a kind into the folder: `network-policy.yaml`. Other files there stay."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in dict.fromkeys(document["kind"] for document in documents):
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind).lower()
            parts = [to_yaml(document) for document in documents if document["kind"] == kind]
            (folder / f"{name}.yaml").write_text(head + "---\n".join(parts), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"nothing can be written there ({error}).", str(folder), "Name another folder.") from error
