"""Model folders that a run exports while it trains, on real ranks."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data_pipeline.errors import ArtifactError, Stopped
from tests.integration.test_export import Run, train
from tests.integration.test_going_on import ODD, fit_run, run, weights
from tests.ranks import on_ranks
from trainer.checkpoints import export
from trainer.checkpoints.export_queue import ExportQueue
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import write_task
from trainer.config.train import TrainConfig
from trainer.engine.process_group import TimeOut
from trainer.engine.train_run import TrainRun
from trainer.ledger.step_name import new_name
from trainer.monitoring import run_log


def begin(one: TrainRun) -> TrainRun:
    write_task(one.store, one.task)  # type: ignore[arg-type]
    return one


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def entries(one: TrainRun, kind: str) -> list[dict[str, Any]]:
    return [entry for part in run_log.read(f"{one.uri}/{run_log.FOLDER}") for entry in part if entry["kind"] == kind]


def test_a_run_leaves_a_model_folder_every_few_steps_and_is_not_changed_by_it(
    shards: Any, source_folder: str, tmp_path: Path
) -> None:
    settings = {"checkpoint_steps": 100}
    plain = begin(run(shards, source_folder, str(tmp_path / "plain"), steps=6, **settings))
    one = begin(run(shards, source_folder, str(tmp_path / "run"), steps=6, export_steps=3, **settings))
    expected, result = fit_run(plain), fit_run(one)
    assert [entry["loss"] for entry in result["history"]] == [entry["loss"] for entry in expected["history"]]
    assert same(weights(one), weights(plain))
    folders = {step: f"{one.uri}-step-{step}" for step in (3, 6)}
    assert [(entry["step"], entry["uri"]) for entry in entries(one, "export")] == list(folders.items())
    assert same(load_file(f"{folders[6]}/model.safetensors"), weights(one))
    assert not same(load_file(f"{folders[3]}/model.safetensors"), weights(one))
    assert AutoModelForMaskedLM.from_pretrained(folders[3])
    assert AutoTokenizer.from_pretrained(folders[3])("help").input_ids
    assert {path.name for path in tmp_path.iterdir()} == {f"plain{ODD}", f"run{ODD}", f"run{ODD}-step-3", f"run{ODD}-step-6"}


@pytest.mark.slow
def test_an_export_that_a_stop_interrupted_is_repeated_on_resume(shards: Any, source_folder: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    with pytest.raises(Stopped):
        fit_run(begin(run(shards, source_folder, folder, steps=6, export_steps=2)), stop=3)
    shutil.rmtree(f"{folder}{ODD}-step-2", ignore_errors=True)
    one = begin(run(shards, source_folder, folder, steps=6, export_steps=2))
    fit_run(one)
    exists = {step: Path(f"{folder}{ODD}-step-{step}", "model.safetensors").exists() for step in (2, 4, 6)}
    assert all(exists.values()), (exists, entries(one, "export"))


class MemoryJournal:
    """A journal in memory."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def write(self, kind: str, **entry: Any) -> None:
        self.entries.append({"kind": kind} | entry)


def finish_slow_export(folder: str) -> list[dict[str, Any]]:
    """Waits for an export that takes longer than the time-out of a collective; returns the journal."""
    store, journal = Store(f"{folder}/checkpoints", 3), MemoryJournal()
    exports = ExportQueue(TrainConfig(export_steps=1), store, folder, journal, None)  # type: ignore[arg-type]
    if dist.get_rank() == 0:
        name = new_name(1, 2)
        with store.part(name, 0) as part:
            Path(part, "weights").touch()
        store.commit(name, 1)
        interpreter = Path(folder, "python")
        interpreter.write_text("#!/bin/sh\nexec sleep 4\n")
        interpreter.chmod(0o755)
        sys.executable = str(interpreter)  # the interpreter of the exporting process
        exports.add(name)
    TimeOut().set(1 / 60)
    exports.finish()
    dist.barrier()
    return journal.entries


def test_the_last_exports_may_take_longer_than_the_time_out_of_a_collective(tmp_path: Path) -> None:
    """Three attempts died at the end of a run, each during an export."""
    assert [entry["step"] for entry in on_ranks(2, finish_slow_export, str(tmp_path))] == [1]


def test_an_export_that_fails_is_noted_with_its_reason(
    source_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Run(source_folder, str(tmp_path), 1, "fp32", "fp32")
    last, first = on_ranks(1, train, one)
    store, journal = Store(f"{tmp_path}/checkpoints", 3), MemoryJournal()
    write_task(store, one.task)
    (tmp_path / "run-step-3").mkdir()
    (tmp_path / "run-step-3" / "mine.txt").write_text("not Scion's")
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("trainer.checkpoints.export_queue.from_first_rank", lambda make: make())
    exports = ExportQueue(TrainConfig(export_steps=1), store, f"{tmp_path}/run", journal, None)  # type: ignore[arg-type]
    exports.add(last)
    assert exports.reading == {last}
    exports.add(first)
    assert exports.reading == {last, first}  # checkpoints of waiting exports are protected, too
    store.drop(first)
    exports.finish()
    assert [(entry["step"], entry["wrong"]) for entry in journal.entries] == [
        (3, "the folder is not empty and not Scion's."),
        (1, "its checkpoint is removed already: raise export_steps or keep_checkpoints"),
    ]
    assert os.listdir(tmp_path / "run-step-3") == ["mine.txt"]


def test_a_repeated_step_replaces_its_folder_but_never_that_of_another_run(source_folder: str, tmp_path: Path) -> None:
    one = Run(source_folder, str(tmp_path), 1, "fp32", "fp32")
    name = on_ranks(1, train, one)[0]  # type: ignore[arg-type]
    store = Store(f"{tmp_path}/checkpoints", 3)
    write_task(store, one.task)
    again = name[:-1] + ("0" if name[-1] != "0" else "1")
    shutil.copytree(f"{store.uri}/{name}", f"{store.uri}/{again}")
    first_export = export.export(store, name, f"{tmp_path}/out")
    with pytest.raises(ArtifactError, match="differs in checkpoint"):
        export.export(store, again, f"{tmp_path}/out")
    replaced = export.export(store, again, f"{tmp_path}/out", again=True)
    assert (first_export.config["checkpoint"], replaced.config["checkpoint"]) == (name, again)
    earlier = Path(f"{tmp_path}/out", "artifact.json")
    earlier.write_text(earlier.read_text().replace('"run": "a"', '"run": "another"'))
    with pytest.raises(ArtifactError, match="differs in checkpoint"):
        export.export(store, name, f"{tmp_path}/out", again=True)
