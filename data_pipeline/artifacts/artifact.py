"""Artefacts: folders that jobs write, complete once they hold `artifact.json`, which is written last.

While a job writes, `unfinished.json` marks the folder as Scion's. A later run may therefore clear what a killed run left,
and never clears a folder of somebody else.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.lease import Lease, is_held
from data_pipeline.errors import ArtifactError, mask_passwords

FORMAT_VERSION = 1
FINISHED, UNFINISHED = "artifact.json", "unfinished.json"
READER_PREFIX = "reading-"
"""Prefix of lease files in a working folder that its readers hold."""
_PACKAGES = ("torch", "transformers", "tokenizers", "ray", "deepspeed", "datasets", "pyarrow", "omegaconf", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished artefact. `id` is a hash of kind, config and the ids of the inputs, never of a path or a date."""

    uri: str
    kind: str
    id: str
    config: dict[str, Any]
    inputs: dict[str, str]
    metrics: dict[str, Any]
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePolicy:
    """Which settings may change when a training resumes, by their dotted names: `pretrain.train.steps`."""

    settings: tuple[str, ...]
    """Settings that may differ from those of the unfinished run."""
    length: str
    """The one of them that extends a finished run when it is raised."""
    state: str
    """Folder below the artefact that a finished run needs to be extended."""
    keep: str
    """The setting that keeps that folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A job's specification of an artefact, complete before any work starts: equal specs make equal artefacts."""

    uri: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    resume_policy: ResumePolicy | None = None

    def __post_init__(self) -> None:
        """Masks passwords: they do not change the result, and a published model folder holds its spec."""
        object.__setattr__(self, "config", mask_passwords(self.config))

    @property
    def id(self) -> str:
        return self._hash(self.config)

    @property
    def run_id(self) -> str:
        """The same for all specs that may resume each other's runs."""
        free = () if self.resume_policy is None else self.resume_policy.settings
        return self._hash({name: value for name, value in _flatten(self.config).items() if name not in free})

    def _hash(self, config: Mapping[str, Any]) -> str:
        content = {"format": FORMAT_VERSION, "kind": self.kind, "config": config, "inputs": self.inputs}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def can_resume(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether an unfinished run with these settings can resume under this spec."""
        free = () if self.resume_policy is None else self.resume_policy.settings
        return not set(_changed(config, inputs, self)) - set(free)

    def can_extend(self, finished: Artifact) -> bool:
        """Whether this run extends a finished one: the same settings, but a greater `length`."""
        if self.resume_policy is None or finished.kind != self.kind or not self.can_resume(finished.config, finished.inputs):
            return False
        return bool(_flatten(self.config)[self.resume_policy.length] > _flatten(finished.config)[self.resume_policy.length])


@dataclass(slots=True)
class Draft:
    """An artefact that is being written; `metrics` end up in `artifact.json`."""

    uri: str
    metrics: dict[str, Any] = field(default_factory=dict)
    lease: Lease | None = None
    """Set where one run at a time may write."""
    working_folders: list[str] = field(default_factory=list)
    """Folders to remove once the artefact is finished."""


def identity(config: object) -> dict[str, Any]:
    """The settings of a config dataclass that change the result: all but fields marked `identity: False`.

    Artefacts may be older than a setting. It is marked `identity: "unless default"`, and they stay valid.
    """
    assert dataclasses.is_dataclass(config)
    values: dict[str, Any] = {}
    for setting in dataclasses.fields(config):
        kind, value = setting.metadata.get("identity", True), getattr(config, setting.name)
        default = setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()
        if kind is True or (kind == "unless default" and value != default):
            values[setting.name] = to_json(value)
    return values


def to_json(value: object) -> Any:
    """A setting in JSON's types."""
    if isinstance(value, tuple):
        return [to_json(part) for part in value]
    return identity(value) if dataclasses.is_dataclass(value) else value


def adjustable_fields(config: object, prefix: str) -> tuple[str, ...]:
    """Dotted names of the fields that may change when a run resumes, marked `adjustable: True`; includes inner sections."""
    assert dataclasses.is_dataclass(config)
    names: list[str] = []
    for setting in dataclasses.fields(config):
        value, name = getattr(config, setting.name), f"{prefix}.{setting.name}"
        if dataclasses.is_dataclass(value):
            names += adjustable_fields(value, name)
        elif setting.metadata.get("adjustable", False):
            names.append(name)
    return tuple(names)


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that affect a result."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def read(uri: str, kind: str, made_by: str) -> Artifact:
    """The finished artefact at `uri`.

    Raises:
        ArtifactError: it is missing, not finished, or of another kind; names the command that makes it.
    """
    artifact = load(uri)
    if artifact is None:
        state = "is not finished" if storage.exists(storage.join(uri, UNFINISHED)) else "is not there"
        raise ArtifactError(f"the {kind} artefact {state}.", uri, f"Make it with `scion {made_by}`.")
    if artifact.kind != kind:
        raise ArtifactError(f"this is a {artifact.kind} artefact, not a {kind} artefact.", uri, "Name another folder.")
    return artifact


def find(spec: Spec, *, replace: bool = False) -> Artifact | None:
    """The finished artefact that `spec` would make; None if it must be made, which may mean to extend a shorter run.

    Args:
        replace: another artefact of the same kind may be replaced.

    Raises:
        ArtifactError: the folder holds something else, which is left as it is.
    """
    finished = load(spec.uri)
    if finished is not None:
        if finished.id == spec.id:
            return finished
        if spec.can_extend(finished):
            _check_state(spec, finished)
            return None
        if replace and finished.kind == spec.kind:
            return None
        changed = ", ".join(_differences(finished.config, finished.inputs, spec)) or "the format version"
        raise ArtifactError(
            f"this folder holds a finished {finished.kind} artefact of another run; it differs in {changed}.",
            spec.uri,
            "Use the settings it was made with, or choose another output=, or another shards= where that names the folder.",
        )
    if storage.is_file(spec.uri):
        raise ArtifactError("a file is here, not a folder.", spec.uri, "Name another folder.")
    if storage.files(spec.uri) and not storage.exists(storage.join(spec.uri, UNFINISHED)):
        raise ArtifactError("the folder is not empty and not Scion's.", spec.uri, "Choose another output=.")
    return None


def has_unfinished_run(spec: Spec, precious: Callable[[], bool] = lambda: False) -> bool:
    """Whether an unfinished run is there that this spec can resume; ArtifactError if it would lose a `precious` one.

    Args:
        precious: whether the unfinished run has results that must not be lost.

    Raises:
        ArtifactError: the unfinished run is of another kind, or cannot be resumed and is `precious`.
    """
    mark = _read_mark(spec)
    if not mark:
        return False
    if mark["kind"] != spec.kind:
        raise ArtifactError(
            f"an unfinished {mark['kind']} artefact is here, not a {spec.kind} artefact.", spec.uri, "Name another folder."
        )
    config, inputs = mark["config"], mark["inputs"]
    can_resume = bool(mark["id"] == spec.id or spec.can_resume(config, inputs))
    if not can_resume and precious():
        changed = ", ".join(_differences(config, inputs, spec)) or "the format version"
        raise ArtifactError(
            f"an unfinished run is here that differs in {changed}.",
            spec.uri,
            "Give it the same settings to resume it; or remove that folder, or choose another output=.",
        )
    return can_resume


@contextmanager
def writing(
    spec: Spec,
    *,
    resumable: bool = False,
    precious: Callable[[], bool] = lambda: False,
    replace: bool = False,
    lease: Lease | None = None,
) -> Iterator[Draft]:
    """Fills the folder of `spec`; it becomes an artefact when the block ends without an error.

    Removes the files of earlier runs first, and the whole folder after an error. With `resumable` it keeps the files of a run
    that this spec can resume (`ResumePolicy`), and keeps its own after an error. A run that has lost its `lease` neither
    finishes nor removes the artefact.

    Raises:
        ArtifactError: the folder holds something else, or a `precious` unfinished run of another spec.
    """
    finished, mark = find(spec, replace=replace), storage.join(spec.uri, UNFINISHED)
    can_resume = has_unfinished_run(spec, precious)
    if not (resumable and (can_resume or finished or load(spec.uri))):
        storage.clear(spec.uri, UNFINISHED)
    description = {"id": spec.id, "kind": spec.kind, "config": spec.config, "inputs": spec.inputs}
    storage.write_bytes(mark, _json(description))
    storage.remove(storage.join(spec.uri, FINISHED))
    draft, start = Draft(spec.uri, lease=lease), time.perf_counter()
    try:
        yield draft
        _check(lease)
    except BaseException:
        if not resumable:
            with contextlib.suppress(ArtifactError):
                _check(lease)
                storage.clear(spec.uri, UNFINISHED)
        raise
    content = {
        "format": FORMAT_VERSION,
        "kind": spec.kind,
        "id": spec.id,
        "config": spec.config,
        "inputs": spec.inputs,
        "metrics": mask_passwords(draft.metrics),
        "seconds": round(time.perf_counter() - start, 3),
        "versions": package_versions(),
    }
    storage.sync(spec.uri)
    storage.write_bytes(mark, _json(description | {"working": draft.working_folders}))
    storage.write_bytes(storage.join(spec.uri, FINISHED), _json(content))
    clean_up(spec.uri)


def is_clean(uri: str) -> bool:
    """Whether a finished artefact has been cleaned up (`clean_up`): a run killed at its very end has not done it."""
    return not storage.exists(storage.join(uri, UNFINISHED))


def clean_up(uri: str) -> None:
    """Removes the working folders of a finished artefact, then `unfinished.json`.

    Does nothing while a working folder has readers (`READER_PREFIX`); the next command cleans up then.
    """
    mark = storage.join(uri, UNFINISHED)
    working = json.loads(storage.read_bytes(mark)).get("working", [])
    if any(map(_has_readers, working)):
        return
    for folder in working:
        storage.remove(folder)
    storage.remove(mark)


def _has_readers(folder: str) -> bool:
    leases = [name for name in storage.files(folder) if name.startswith(READER_PREFIX)]
    return any(is_held(storage.join(folder, lease)) for lease in leases)


def _check(lease: Lease | None) -> None:
    if lease is not None:
        lease.check()


def _check_state(spec: Spec, finished: Artifact) -> None:
    """Checks that a finished run kept the state that extending it needs."""
    assert spec.resume_policy is not None
    if not storage.files(storage.join(spec.uri, spec.resume_policy.state)):
        raise ArtifactError(
            f"the run here has finished and kept no state to extend it from; it differs in "
            f"{', '.join(_differences(finished.config, finished.inputs, spec))}.",
            spec.uri,
            f"Choose another output=, or remove that folder; with {spec.resume_policy.keep}=true a run can be extended later.",
        )


def load(uri: str) -> Artifact | None:
    """The finished artefact at `uri`, of any kind; None if there is none.

    Raises:
        ArtifactError: `artifact.json` cannot be read.
    """
    path = storage.join(uri, FINISHED)
    if not storage.exists(path):
        return None
    try:
        content = json.loads(storage.read_bytes(path))
        if content.pop("format") != FORMAT_VERSION:
            raise ArtifactError("written by another version of Scion.", path, "Make it again.")
        return Artifact(uri=uri, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"cannot be read ({error}).", path, "Remove the folder and make it again.")


def _read_mark(spec: Spec) -> dict[str, Any]:
    """The content of `unfinished.json` in the folder of `spec`; empty if there is none."""
    path = storage.join(spec.uri, UNFINISHED)
    if not storage.exists(path):
        return {}
    try:
        content = dict(json.loads(storage.read_bytes(path)))
        return {name: content[name] for name in ("id", "kind", "config", "inputs")}
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error


def _differences(config: Mapping[str, Any], inputs: Mapping[str, str], spec: Spec) -> list[str]:
    """What changed, by full key: `shard.tokenizer.vocab_size (8000 -> 12032)`."""
    old, new = _flatten(config), _flatten(spec.config)
    changed = _changed(config, inputs, spec)
    return [name if name in {*spec.inputs, *inputs} else f"{name} ({old.get(name)} -> {new.get(name)})" for name in changed]


def _changed(config: Mapping[str, Any], inputs: Mapping[str, str], spec: Spec) -> list[str]:
    """Names of settings and inputs that differ."""
    old, new = {**_flatten(config), **inputs}, {**_flatten(spec.config), **spec.inputs}
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
