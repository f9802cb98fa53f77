"""Which checkpoints a resumed run exports, and the drafts of a killed export."""

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trainer.checkpoints import export_queue
from trainer.checkpoints.export_queue import ExportQueue
from trainer.checkpoints.store import COMMITTED, Store
from trainer.config.train import TrainConfig

OLD, NEW, NEXT = "step_000000100-w2-aaa", "step_000000100-w2-bbb", "step_000000200-w2-ccc"


class MemoryJournal:
    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def write(self, kind: str, **entry: Any) -> None:
        self.entries.append({"kind": kind} | entry)


class FinishedProcess:
    """An export process that succeeds at once; notes its checkpoint."""

    checkpoints: ClassVar[list[str]] = []
    returncode = 0

    def __init__(self, command: list[str], **options: Any) -> None:
        *_, checkpoint, _folder = command
        self.checkpoints.append(checkpoint)

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: MemoryJournal) -> ExportQueue:
    """Of a run with three checkpoints, two of them after step 100."""
    for name in (OLD, NEW, NEXT):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name / COMMITTED).write_text("{}")
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("trainer.checkpoints.export_queue.from_first_rank", lambda make: make())
    store = Store(f"{tmp_path}/run/checkpoints", 3)
    return ExportQueue(TrainConfig(export_steps=100), store, f"{tmp_path}/run", journal, None)  # type: ignore[arg-type]


def finish(folder: Path, checkpoint: str) -> None:
    folder.mkdir()
    content = {"format": 1, "kind": "model", "id": "x", "config": {"checkpoint": checkpoint}, "inputs": {}}
    (folder / "artifact.json").write_text(json.dumps(content | {"metrics": {}, "seconds": 1.0, "versions": {}}))


def exported_on_resume(exports: ExportQueue, lineage: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that a run exports when it resumes."""
    monkeypatch.setattr(FinishedProcess, "checkpoints", [])
    monkeypatch.setattr(export_queue.subprocess, "Popen", FinishedProcess)
    exports.resume(lineage)
    exports.finish()
    return FinishedProcess.checkpoints


def test_the_folder_of_an_abandoned_checkpoint_is_exported_again(
    exports: ExportQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run went back, made step 100 another time, and was killed before the export."""
    finish(tmp_path / "run-step-100", OLD)
    finish(tmp_path / "run-step-200", NEXT)
    assert exported_on_resume(exports, [NEW, NEXT], monkeypatch) == [NEW]


def test_the_last_checkpoint_of_a_step_counts(exports: ExportQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes back saves the step once more, without the rows that it leaves out."""
    finish(tmp_path / "run-step-100", NEW)
    (tmp_path / "run-step-200").mkdir()
    (tmp_path / "run-step-200" / "artifact.json").write_text("the user's")
    assert exported_on_resume(exports, [OLD, NEW, NEXT], monkeypatch) == [NEXT]


def test_a_killed_export_leaves_no_draft(
    exports: ExportQueue, journal: MemoryJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many bytes as the model, where nothing looked for it."""
    killed = tmp_path / "python"
    killed.write_text('#!/bin/sh\nmkdir "$5.0123456789ab.draft"\nkill -9 $$\n')
    killed.chmod(0o755)
    monkeypatch.setattr(export_queue.sys, "executable", str(killed))
    exports.add(NEXT)
    assert exports.reading == {NEXT}
    time.sleep(0.1)
    exports.finish()
    assert journal.entries[0]["wrong"] == "it ended with code -9"
    assert [path.name for path in tmp_path.iterdir() if "step" in path.name] == []
