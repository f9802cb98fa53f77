"""A stage whose folder several runs write to."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from data_pipeline.artifacts import artifact, lease, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ArtifactError
from ray_jobs import console, stop_request
from ray_jobs.console import Reporter
from ray_jobs.stage import Stage
from trainer.monitoring import run_log
from trainer.monitoring.run_log import RunLog


def stage(folder: Path, filled: list[str]) -> Stage:
    def fill(draft: Draft, report: Reporter) -> str:
        filled.append(draft.uri)
        return "filled"

    return Stage(name="shard", spec=Spec(uri=str(folder), kind="shards", config={}, inputs={}), fill=fill)


def test_two_runs_do_not_write_to_a_shared_folder_at_once(tmp_path: Path) -> None:
    filled: list[str] = []
    with lease.hold(f"{tmp_path}/shards.lease.json"), pytest.raises(ArtifactError, match="another run is writing here"):
        stage(tmp_path / "shards", filled).run(Console(file=io.StringIO()))
    assert filled == []


def test_an_artefact_that_another_run_finishes_meanwhile_is_reused(tmp_path: Path, monkeypatch) -> None:
    filled: list[str] = []
    own, output = stage(tmp_path / "shards", filled), io.StringIO()
    seen = Stage.finished

    def late(self: Stage):  # what is there at the first look, before the other run is done
        monkeypatch.setattr(Stage, "finished", seen)
        stage(tmp_path / "shards", filled).run(Console(file=io.StringIO()))

    monkeypatch.setattr(Stage, "finished", late)
    own.run(Console(file=output))
    assert len(filled) == 1
    assert "kept" in output.getvalue()


def test_a_superseded_stage_neither_finishes_nor_removes_the_other_s_files(tmp_path: Path) -> None:
    """It wrote artifact.json into the other's folder, or emptied it when it was stopped."""
    folder = tmp_path / "shards"

    def fill(draft: Draft, report: Reporter) -> str:
        (folder / "theirs.txt").write_text("the other's")
        storage.write_bytes(
            f"{folder}.lease.json", json.dumps({"token": "other", "host": "x", "pid": 1, "renewed": 0}).encode()
        )
        return "filled"

    one = Stage(name="shard", spec=Spec(uri=str(folder), kind="shards", config={}, inputs={}), fill=fill)
    with pytest.raises(ArtifactError, match="another run has taken over"):
        one.run(Console(file=io.StringIO()))
    assert sorted(path.name for path in folder.iterdir()) == ["theirs.txt", "unfinished.json"]


def test_paths_with_brackets_are_printed_as_they_are() -> None:
    """rich takes [/x] for the end of a style, and leaves [x] out."""
    output = io.StringIO()
    with console.stage(Console(file=output, width=200), "compare [0]") as reporter:
        reporter.note("could not save to [/data/run]/x")
    console.print_done(Console(file=output, width=200), "compare [0]", 1.0, "made [a] of [/b]")
    for text in ("[/data/run]/x", "made [a] of [/b]", "compare [0]"):
        assert text in output.getvalue()


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that says nothing for hours is taken for one that hangs."""
    output, now = io.StringIO(), 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.stage(Console(file=output, width=200), "pretrain random") as reporter:
        for second in range(3600):
            now = float(second)
            reporter("train, loss 2.718", 1000 + second, 10_000)
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert lines[0] == ["pretrain", "random", "train,", "loss", "2.718:", "1,060", "of", "10,000"]
    assert [int(line[-3].replace(",", "")) - 1000 for line in lines] == [60, 180, 420, 900, 1500, 2100, 2700, 3300]


@pytest.mark.parametrize("stepped", [False, True])
def test_a_training_without_a_step_done_does_not_stand_in_the_way_of_corrected_settings(tmp_path: Path, stepped: bool) -> None:
    folder = tmp_path / "pretrain"

    def interrupted(draft: Draft, report: Reporter) -> str:
        log = RunLog(f"{folder}/{run_log.FOLDER}")
        log.write("start", next_step=0)
        if stepped:
            log.write("step", step=0)
        raise KeyboardInterrupt

    def training(settings: dict, fill) -> Stage:  # type: ignore[no-untyped-def]
        own = Spec(uri=str(folder), kind="model", config=settings, inputs={})
        return Stage(name="pretrain", spec=own, fill=fill, is_resumable=True, training_uri=own.uri)

    with pytest.raises(KeyboardInterrupt):
        training({"frozen": "encoder"}, interrupted).run(Console(file=io.StringIO()))
    corrected = training({"frozen": "body"}, lambda draft, report: "trained")
    if stepped:
        with pytest.raises(ArtifactError, match="an unfinished run is here that differs in frozen"):
            corrected.run(Console(file=io.StringIO()))
    else:
        assert corrected.run(Console(file=io.StringIO())).config == {"frozen": "body"}
        assert not (folder / run_log.FOLDER).exists()


def test_an_unfinished_training_is_found_before_anything_is_written(tmp_path: Path) -> None:
    """config.yaml of the run was replaced by that of a command which was then refused."""
    folder = tmp_path / "pretrain"

    def training(settings: dict, fill) -> Stage:  # type: ignore[no-untyped-def]
        own = Spec(uri=str(folder), kind="model", config=settings, inputs={})
        return Stage(name="pretrain", spec=own, fill=fill, is_resumable=True, training_uri=own.uri)

    def interrupted(draft: Draft, report: Reporter) -> str:
        RunLog(f"{folder}/{run_log.FOLDER}").write("step", step=0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training({"rate": 1}, interrupted).run(Console(file=io.StringIO()))
    assert training({"rate": 1}, interrupted).finished() is None
    with pytest.raises(ArtifactError, match="an unfinished run is here that differs in rate"):
        training({"rate": 2}, interrupted).finished()


def test_files_of_a_driver_killed_at_the_very_end_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of a finished run stayed for ever: 100 GB of a 7B."""
    folder, filled = tmp_path / "pretrain", list[str]()

    def fill(draft: Draft, report: Reporter) -> str:
        filled.append(draft.uri)
        storage.write_bytes(f"{folder}/checkpoints/state.pt", b"large")
        draft.working_folders.append(f"{folder}/checkpoints")
        return "trained"

    one = Stage(name="pretrain", spec=Spec(uri=str(folder), kind="model", config={}, inputs={}), fill=fill, is_resumable=True)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "clean_up", lambda uri: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            one.run(Console(file=io.StringIO()))
    assert {path.name for path in folder.iterdir()} == {"artifact.json", "unfinished.json", "checkpoints"}
    one.run(Console(file=io.StringIO()))
    assert {path.name for path in folder.iterdir()} == {"artifact.json"}
    assert len(filled) == 1


def test_a_wish_to_stop_that_comes_after_the_last_step_ends_the_job_behind_the_stage(tmp_path: Path) -> None:
    """It was forgotten, and the next stage began."""

    def fill(draft: Draft, report: Reporter) -> str:
        stop_request.set_training(True)
        assert stop_request.request_stop()  # taken: a training would save
        stop_request.set_training(False)
        return "trained"

    plan = Spec(uri=str(tmp_path / "pretrain"), kind="model", config={}, inputs={})
    stage = Stage(name="pretrain", spec=plan, fill=fill, is_resumable=True)
    with pytest.raises(KeyboardInterrupt):
        stage.run(Console(file=io.StringIO()))
    assert stage.finished() is not None
    assert not stop_request.clear_request()
    assert not stop_request.request_stop()  # nothing trains: whoever asks is to unwind, and nobody is asked later
    assert not stop_request.clear_request()
