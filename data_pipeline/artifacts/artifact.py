"""What a job leaves behind: a folder at any URI that holds `artifact.json`, written last.

A folder without it is never taken for finished. While a job writes, `unfinished.json` marks the folder as ours, so that
a later run may clear what a killed one left, and never clears a folder that somebody else filled.
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
"""Begins the names of leases in a working folder that those hold who read there."""
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
    """How a training in the folder of a plan may go on under other settings, by their dotted names: `pretrain.train.steps`."""

    settings: tuple[str, ...]
    """Those that may differ from what an unfinished run had."""
    length: str
    """The one of them that a finished run may have had smaller: it then goes on."""
    state: str
    """Folder below the artefact without which a finished run cannot go on."""
    keep: str
    """The setting that keeps that folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a job is about to make, known before anything is done: two equal plans make equal artefacts."""

    uri: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    resume_policy: ResumePolicy | None = None

    def __post_init__(self) -> None:
        """Passwords decide about no result, and a model folder that is published holds its plan."""
        object.__setattr__(self, "config", mask_passwords(self.config))

    @property
    def id(self) -> str:
        return self._hash(self.config)

    @property
    def run_id(self) -> str:
        """The same for all plans of which one may go on where the other was."""
        free = () if self.resume_policy is None else self.resume_policy.settings
        return self._hash({name: value for name, value in _flat(self.config).items() if name not in free})

    def _hash(self, config: Mapping[str, Any]) -> str:
        content = {"format": FORMAT_VERSION, "kind": self.kind, "config": config, "inputs": self.inputs}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def can_resume(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether an unfinished run that had these settings goes on under this plan."""
        free = () if self.resume_policy is None else self.resume_policy.settings
        return not set(_changed(config, inputs, self)) - set(free)

    def can_extend(self, found: Artifact) -> bool:
        """Whether a finished run is a beginning of this one."""
        if self.resume_policy is None or found.kind != self.kind or not self.can_resume(found.config, found.inputs):
            return False
        return bool(_flat(self.config)[self.resume_policy.length] > _flat(found.config)[self.resume_policy.length])


@dataclass(slots=True)
class Draft:
    """The folder while it is being filled; `metrics` end up in `artifact.json`."""

    uri: str
    metrics: dict[str, Any] = field(default_factory=dict)
    lease: Lease | None = None
    """Where one run at a time may write."""
    working_folders: list[str] = field(default_factory=list)
    """Folders that are needed until the artefact is finished, and removed then."""


def identity(config: object) -> dict[str, Any]:
    """The part of a config dataclass that changes the result: fields marked `identity: False` are left out."""
    assert dataclasses.is_dataclass(config)
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(config):
        if spec.metadata.get("identity", True):
            value = getattr(config, spec.name)
            values[spec.name] = to_json(value)
    return values


def to_json(value: object) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, tuple):
        return [to_json(part) for part in value]
    return identity(value) if dataclasses.is_dataclass(value) else value


def adjustable_fields(config: object, prefix: str) -> tuple[str, ...]:
    """Dotted names of the fields that may change when a run goes on, marked `adjustable: True`, those of inner sections too."""
    assert dataclasses.is_dataclass(config)
    names: list[str] = []
    for spec in dataclasses.fields(config):
        value, name = getattr(config, spec.name), f"{prefix}.{spec.name}"
        if dataclasses.is_dataclass(value):
            names += adjustable_fields(value, name)
        elif spec.metadata.get("adjustable", False):
            names.append(name)
    return tuple(names)


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def read(uri: str, kind: str, made_by: str) -> Artifact:
    """The finished artefact at `uri`.

    Raises:
        ArtifactError: nothing there, not finished, or of another kind; names the command that makes it.
    """
    found = load(uri)
    if found is None:
        state = "is not finished" if storage.exists(storage.join(uri, UNFINISHED)) else "is not there"
        raise ArtifactError(f"the {kind} artefact {state}.", uri, f"Make it with `scion {made_by}`.")
    if found.kind != kind:
        raise ArtifactError(f"this is a {found.kind} artefact, not a {kind} artefact.", uri, "Name another folder.")
    return found


def find(plan: Spec, *, replace: bool = False) -> Artifact | None:
    """The finished artefact that `plan` would make, or None when it is still to be made, perhaps from what a shorter run left.

    Args:
        replace: another artefact of the same kind may be replaced.

    Raises:
        ArtifactError: the folder holds something else, which is left as it is.
    """
    found = load(plan.uri)
    if found is not None:
        if found.id == plan.id:
            return found
        if plan.can_extend(found):
            _check_state(plan, found)
            return None
        if replace and found.kind == plan.kind:
            return None
        changed = ", ".join(_differences(found.config, found.inputs, plan)) or "the format version"
        raise ArtifactError(
            f"this folder holds a finished {found.kind} artefact of another run; it differs in {changed}.",
            plan.uri,
            "Give what it was made with, or choose another output=, or another shards= where that names the folder.",
        )
    if storage.is_file(plan.uri):
        raise ArtifactError("a file is here, not a folder.", plan.uri, "Name another place.")
    if storage.files(plan.uri) and not storage.exists(storage.join(plan.uri, UNFINISHED)):
        raise ArtifactError("the folder is not empty and not Scion's.", plan.uri, "Choose another output=.")
    return None


def has_unfinished_run(plan: Spec, precious: Callable[[], bool] = lambda: False) -> bool:
    """Whether an earlier run with this plan, but for what may change (`ResumePolicy`), is unfinished.

    Raises:
        ArtifactError: one with another plan is, and `precious` says that it is worth something; or one of another kind.
    """
    left = _left(plan)
    if not left:
        return False
    if left["kind"] != plan.kind:
        raise ArtifactError(
            f"an unfinished {left['kind']} artefact is here, not a {plan.kind} artefact.", plan.uri, "Name another folder."
        )
    config, inputs = left["config"], left["inputs"]
    begun = bool(left["id"] == plan.id or plan.can_resume(config, inputs))
    if not begun and precious():
        changed = ", ".join(_differences(config, inputs, plan)) or "the format version"
        raise ArtifactError(
            f"an unfinished run is here that differs in {changed}.",
            plan.uri,
            "Give it the same settings and it goes on; or remove that folder, or choose another output=.",
        )
    return begun


@contextmanager
def writing(
    plan: Spec,
    *,
    resumable: bool = False,
    precious: Callable[[], bool] = lambda: False,
    replace: bool = False,
    lease: Lease | None = None,
) -> Iterator[Draft]:
    """Fills the folder of `plan`; it becomes an artefact when the block ends without an error.

    What an earlier run left is removed first. With `resumable` it is kept if its plan was the same, but for what may change
    (`ResumePolicy`), and an error keeps what is there for the next run; otherwise an error removes the folder. Who has lost the
    `lease` neither finishes nor removes it.

    Raises:
        ArtifactError: the folder holds something else; where `precious` says so, also if that is unfinished.
    """
    finished, mark = find(plan, replace=replace), storage.join(plan.uri, UNFINISHED)
    begun = has_unfinished_run(plan, precious)
    if not (resumable and (begun or finished or load(plan.uri))):
        storage.clear(plan.uri, UNFINISHED)
    begins = {"id": plan.id, "kind": plan.kind, "config": plan.config, "inputs": plan.inputs}
    storage.write_bytes(mark, _json(begins))
    storage.remove(storage.join(plan.uri, FINISHED))
    draft, start = Draft(plan.uri, lease=lease), time.perf_counter()
    try:
        yield draft
        _check(lease)
    except BaseException:
        if not resumable:
            with contextlib.suppress(ArtifactError):
                _check(lease)
                storage.clear(plan.uri, UNFINISHED)
        raise
    content = {
        "format": FORMAT_VERSION,
        "kind": plan.kind,
        "id": plan.id,
        "config": plan.config,
        "inputs": plan.inputs,
        "metrics": mask_passwords(draft.metrics),
        "seconds": round(time.perf_counter() - start, 3),
        "versions": package_versions(),
    }
    storage.sync(plan.uri)
    storage.write_bytes(mark, _json(begins | {"working": draft.working_folders}))
    storage.write_bytes(storage.join(plan.uri, FINISHED), _json(content))
    clean_up(plan.uri)


def is_clean(uri: str) -> bool:
    """Whether nothing is left of the making of a finished artefact, as a kill at its end leaves it."""
    return not storage.exists(storage.join(uri, UNFINISHED))


def clean_up(uri: str) -> None:
    """Removes what was needed until the artefact was finished, and the mark that says so, last.

    While somebody reads there (`READER_PREFIX`) all of it stays, and the next command clears it.
    """
    mark = storage.join(uri, UNFINISHED)
    working = json.loads(storage.read_bytes(mark)).get("working", [])
    if any(map(_is_read, working)):
        return
    for folder in working:
        storage.remove(folder)
    storage.remove(mark)


def _is_read(folder: str) -> bool:
    marks = [name for name in storage.files(folder) if name.startswith(READER_PREFIX)]
    return any(is_held(storage.join(folder, mark)) for mark in marks)


def _check(lease: Lease | None) -> None:
    if lease is not None:
        lease.check()


def _check_state(plan: Spec, found: Artifact) -> None:
    """Whether a finished run kept what it needs to go on."""
    assert plan.resume_policy is not None
    if not storage.files(storage.join(plan.uri, plan.resume_policy.state)):
        raise ArtifactError(
            f"the run here has ended and kept nothing to go on from; it differs in "
            f"{', '.join(_differences(found.config, found.inputs, plan))}.",
            plan.uri,
            f"Choose another output=, or remove that folder; with {plan.resume_policy.keep}=true it can go on after its end.",
        )


def load(uri: str) -> Artifact | None:
    """The finished artefact at `uri`, of any kind; None if there is none.

    Raises:
        ArtifactError: it cannot be read.
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


def _left(plan: Spec) -> dict[str, Any]:
    """The mark of whoever began to fill the folder of `plan`; empty if nobody did."""
    path = storage.join(plan.uri, UNFINISHED)
    if not storage.exists(path):
        return {}
    try:
        content = dict(json.loads(storage.read_bytes(path)))
        return {name: content[name] for name in ("id", "kind", "config", "inputs")}
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error


def _differences(config: Mapping[str, Any], inputs: Mapping[str, str], plan: Spec) -> list[str]:
    """Names what changed, deepest key first: `shard.tokenizer.vocab_size (8000 -> 12032)`."""
    old, new = _flat(config), _flat(plan.config)
    changed = _changed(config, inputs, plan)
    return [name if name in {*plan.inputs, *inputs} else f"{name} ({old.get(name)} -> {new.get(name)})" for name in changed]


def _changed(config: Mapping[str, Any], inputs: Mapping[str, str], plan: Spec) -> list[str]:
    """Names of settings and inputs that differ."""
    old, new = {**_flat(config), **inputs}, {**_flat(plan.config), **plan.inputs}
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
