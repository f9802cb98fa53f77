"""What Ray runs: the configuration of Serve, runtime environments, and the entry points of jobs."""

import ast
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path as File
from typing import Any

import yaml

from cluster.validate.documents import Document, Finding, Path, at, listed, mapped
from cluster.validate.schema import advice
from data_pipeline.errors import ConfigError

_OUR_APP = "cluster.serve.app:app"
_JOBS = {"RayJob": ("spec",), "RayCronJob": ("spec", "jobTemplate")}


def check(document: Document) -> Iterator[Finding]:
    """Findings on texts that Ray parses: `serveConfigV2`, `runtimeEnvYAML` and `entrypointResources`."""
    if document.kind == "RayService" and (text := at(document.content, ("spec", "serveConfigV2"))):
        yield from _serve_config(document, text)
    if (path := _JOBS.get(document.kind)) is None:
        return
    if isinstance(text := at(document.content, (*path, "runtimeEnvYAML")), str) and not _is_map(text):
        yield document.found((*path, "runtimeEnvYAML"), "it is no YAML of a runtime environment.", "Write KEY: VALUE.")
    if isinstance(text := at(document.content, (*path, "entrypointResources")), str) and _resources(text) is None:
        fix = """Write '{"NAME": 1}'."""
        yield document.found((*path, "entrypointResources"), "it is no JSON of resources.", fix)


def check_ours(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Findings on settings that our code refuses, and on entry points that it does not have."""
    if document.kind == "RayService":
        yield from _our_service(document, documents)
    if (path := _JOBS.get(document.kind)) is not None:
        yield from _entrypoint(document, (*path, "entrypoint"))
        offered = {name for _, group in document.groups() for name in group.get("resources") or {}}
        for name in _resources(at(document.content, (*path, "entrypointResources"), "{}")) or {}:
            if name not in offered:
                fix = "Add it to `resources` of a worker group."
                yield document.found((*path, "entrypointResources"), f"no group offers the resource {name}.", fix)
    if document.kind == "CronJob":
        for where, container in document.containers():
            command = container.get("command") or []
            if "-m" in command and not _has_module(command[command.index("-m") + 1]):
                yield document.found(
                    (*where, "command"), f"there is no module {command[command.index('-m') + 1]}.", "Correct it."
                )


def serve_config(document: Document) -> dict[str, Any]:
    """The parsed configuration of a RayService; empty if it is not YAML."""
    found = _yaml(str(at(document.content, ("spec", "serveConfigV2"), "")))
    return found if isinstance(found, dict) else {}


def overrides(entrypoint: str) -> dict[str, str]:
    """The `key=value` words of an entry point."""
    return dict(word.split("=", 1) for word in _words(entrypoint) if "=" in word)


def _serve_config(document: Document, text: Any) -> Iterator[Finding]:
    """Findings of Ray's own schema."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    where: Path = ("spec", "serveConfigV2")
    if not isinstance(text, str):
        return  # `schema` reports it
    if not isinstance(config := _yaml(text), dict):
        yield document.found(where, "it is no YAML of Ray Serve.", "Write `applications:` and what follows.")
        return
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        for one in error.errors():
            yield document.found((*where, *one["loc"]), f"{one['msg']}.", "See `serve build`.")


def _our_service(document: Document, documents: Sequence[Document]) -> Iterator[Finding]:
    """Findings on keys that Serve ignores, on applications that are not there, and on their arguments."""
    from ray.serve.schema import ServeDeploySchema

    where: Path = ("spec", "serveConfigV2")
    config = serve_config(document)
    yield from _unknown_keys(document, where, config, ServeDeploySchema)
    for place, application in enumerate(config.get("applications", [])):
        here: Path = (*where, "applications", place)
        module, _, name = application["import_path"].partition(":")
        if name not in _names(module):
            yield document.found(
                (*here, "import_path"), f"there is no {application['import_path']}.", f"Scion's is {_OUR_APP}."
            )
        elif application["import_path"] == _OUR_APP:
            yield from _arguments(document, (*here, "args"), application.get("args", {}))
    yield from _port(document, documents, config)


def _unknown_keys(document: Document, path: Path, value: Any, model: Any) -> Iterator[Finding]:
    """Keys of a part of the configuration that Serve would ignore."""
    if not isinstance(value, dict):
        return
    known = {key for name, one in model.model_fields.items() for key in (name, one.alias) if key}
    for key, inner in value.items():
        if key not in known:
            yield document.found((*path, key), "Serve ignores this key.", advice(key, known))
            continue
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        models = [one for one in (annotation, *getattr(annotation, "__args__", ())) if hasattr(one, "model_fields")]
        for one in models[:1]:
            items = enumerate(inner) if isinstance(inner, list) else [(None, inner)]
            for place, item in items:
                yield from _unknown_keys(document, (*path, key) if place is None else (*path, key, place), item, one)


def _arguments(document: Document, path: Path, given: Mapping[str, Any]) -> Iterator[Finding]:
    """The settings of the endpoint, checked as `cluster.serve.app.app` does."""
    from pydantic import TypeAdapter, ValidationError

    from cluster.serve.config import ServeConfig, require_model

    known = [one.name for one in fields(ServeConfig)]
    for key in given:
        if key not in known:
            yield document.found((*path, key), "there is no such setting.", advice(key, known))
    try:
        require_model(TypeAdapter(ServeConfig).validate_python({key: one for key, one in given.items() if key in known}))
    except ValidationError as error:
        for one in error.errors():
            yield document.found((*path, *one["loc"]), f"{one['msg']}.")
    except ConfigError as error:
        yield document.found((*path, error.where.removeprefix("serve.")), error.what, error.fix)


def _port(document: Document, documents: Sequence[Document], config: dict[str, Any]) -> Iterator[Finding]:
    """The port of the endpoint is named at the head and let in by the policies that select it."""
    port = at(config, ("http_options", "port"), 8000)
    for path, group in document.groups():
        ports = at(group, ("template", "spec", "containers", 0, "ports"), [])
        if path[-1] == "headGroupSpec" and not any(
            one.get("name") == "serve" and one["containerPort"] == port for one in ports
        ):
            where = (*path, "template", "spec", "containers", 0, "ports")
            yield document.found(
                where, f"the port of Serve, {port}, is not named here.", f"Add {{name: serve, containerPort: {port}}}."
            )
    for policy in documents:
        rules = [mapped(rule) for rule in listed(at(policy.content, ("spec", "ingress")))]
        open_ports = [mapped(one).get("port") for rule in rules if "from" not in rule for one in listed(rule.get("ports"))]
        if policy.kind == "NetworkPolicy" and port not in open_ports:
            yield policy.found(("spec", "ingress"), f"the port of Serve, {port}, is closed.", "Let it in.")


def _entrypoint(document: Document, path: Path) -> Iterator[Finding]:
    """The job of an entry point: `python -m MODULE ...`."""
    words = _words(at(document.content, path, ""))
    if words[:2] != ["python", "-m"] or len(words) < 3:
        yield document.found(path, "it starts no job of Scion.", "Write python -m ray_jobs.JOB CONFIG key=value.")
    elif not _has_module(words[2]):
        yield document.found(path, f"there is no module {words[2]}.", "`scion --help` lists the jobs.")
    elif "__main__" not in _source(words[2]) and not _has_module(f"{words[2]}.__main__"):
        yield document.found(path, f"{words[2]} does nothing when it is run.", "Name a job of `scion --help`.")


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _source(module: str) -> str:
    spec = find_spec(module)
    return File(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""


def _names(module: str) -> set[str]:
    """What a module defines at its top, read from its source: importing it may take seconds."""
    if not _has_module(module):
        return set()
    found = set()
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _words(entrypoint: Any) -> list[str]:
    try:
        return shlex.split(str(entrypoint))
    except ValueError:  # a quotation mark without its partner
        return []


def _is_map(text: str) -> bool:
    """Whether a text is a map of YAML, or holds comments only."""
    return isinstance(_yaml(text), dict) or all(line.lstrip()[:1] in ("", "#") for line in text.splitlines())


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _resources(text: Any) -> dict[str, float] | None:
    """The resources of a JSON text; None if it is none."""
    try:
        found = json.loads(str(text))
    except ValueError:
        return None
    is_right = isinstance(found, dict) and all(isinstance(one, int | float) for one in found.values())
    return found if is_right else None
