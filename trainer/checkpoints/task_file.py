"""`task.json` beside a run's checkpoints: what the run trains, so that an export needs no configuration."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_pipeline.artifacts import storage
from data_pipeline.errors import ArtifactError
from trainer.checkpoints.store import Store
from trainer.embedder_spec import EmbedderSpec
from trainer.models.adapters import Lora
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask
from trainer.tasks.task import Task

TASK = "task.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTask:
    """What an export needs of a run."""

    kind: Literal["model", "embedder"]
    """The kind of folder that the run makes."""
    task: Task
    frozen: tuple[str, ...]
    """Patterns as in `TrainConfig.frozen`."""
    lora: Lora | None


def write_task(
    store: Store, task: LanguageModelTask | ContrastiveTask, frozen: Collection[str] = (), lora: Lora | None = None
) -> None:
    """Writes the file. The objective is left out: an export computes no loss."""
    kind = "model" if isinstance(task, LanguageModelTask) else "embedder"
    settings = {name: value for name, value in asdict(task).items() if name != "objective"}
    content: dict[str, Any] = {"kind": kind, "task": settings, "frozen": list(frozen)}
    content["lora"] = None if lora is None else asdict(lora)
    storage.write_bytes(storage.join(store.uri, TASK), json.dumps(content).encode())


def read_task(store: Store) -> TrainedTask:
    """Reads the file; earlier versions of Scion wrote settings of the objective, too.

    Raises:
        ArtifactError: there is none: an early version of Scion began the run.
    """
    path = storage.join(store.uri, TASK)
    if not storage.exists(path):
        raise ArtifactError("the run does not say what it trains.", path, "Resume the run, which writes the file.")
    content = json.loads(storage.read_bytes(path))
    settings: dict[str, Any] = content["task"]
    given = content.get("lora")
    lora = None if given is None else Lora(**given | {"targets": tuple(given["targets"])})
    frozen = tuple(content.get("frozen", []))
    if content["kind"] == "model":
        return TrainedTask(kind="model", task=LanguageModelTask(**settings), frozen=frozen, lora=lora)
    spec = EmbedderSpec.from_json(settings["spec"])
    later = {name: settings[name] for name in ("bidirectional", "latents") if name in settings}
    task = ContrastiveTask(model_uri=settings["model_uri"], spec=spec, **later)
    return TrainedTask(kind="embedder", task=task, frozen=frozen, lora=lora)
