"""Trackers get the numbers of the log; TensorBoard replaces repeated steps, the others get none twice."""

import json
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.errors import ConfigError
from ray_jobs import preflight
from ray_jobs.config import load as configs
from trainer.monitoring import trackers
from trainer.monitoring.metric_writers import MetricWriters
from trainer.monitoring.trackers import FOLDER, Tracked


def entry(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "step", "step": step, "loss": loss, "mfu": None, "streams": {"el": {"loss": loss / 2, "targets": 3}}}


def tracked(folder: Path, next_step: int, begun: str = "1.0") -> Tracked:
    settings = {"steps": 8, "betas": [0.9, 0.99], "clip": None}
    return Tracked(uri=str(folder), identity="a", begun=begun, settings=settings, next_step=next_step)


def train(folder: Path, *kinds: str) -> list[str]:
    """Two attempts of five steps each; steps 3 and 4 are made twice. The warnings."""
    seen, warnings = list[dict[str, Any]](), list[str]()
    for next_step, offset in ((0, 0.0), (3, 10.0)):
        sinks = MetricWriters(tracked(folder, next_step), kinds, seen, warnings.append)
        scored = {"kind": "evaluation", "step": next_step, "bits_per_byte": 1.5, "by_language": {"el": 1.5}}
        sinks.evaluation(scored)
        sinks.evaluation({"kind": "evaluation", "step": next_step, "retrieval": {"forward": {"accuracy_at_1": 0.25}}})
        steps = [entry(step, step + offset) for step in range(next_step, next_step + 5)]
        for step in steps:
            sinks.step(step)
        sinks.close()
        seen += [scored, *steps]
    return warnings


def test_tensorboard_keeps_the_last_of_repeated_steps(tmp_path: Path) -> None:
    assert train(tmp_path, "tensorboard") == []
    rows = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    losses = {event.step: event.value for event in rows.Scalars("loss")}
    assert losses == {step: step + (10.0 if step >= 3 else 0.0) for step in range(8)}
    assert {event.step: event.value for event in rows.Scalars("loss/el")} == {s: v / 2 for s, v in losses.items()}
    assert [event.value for event in rows.Scalars("evaluation/bits_per_byte")] == [1.5, 1.5]
    assert [event.value for event in rows.Scalars("evaluation/accuracy_at_1/forward")] == [0.25, 0.25]
    assert not [tag for tag in rows.Tags()["scalars"] if "mfu" in tag]


def test_a_run_in_a_folder_with_a_greek_name_is_tracked(tmp_path: Path) -> None:
    """Ray takes labels in ASCII only: the training ended at its first step."""
    sinks = MetricWriters(tracked(tmp_path / "χρήστης wörk", 0), [], [], print)
    sinks.step(entry(0, 1.0) | {"streams": {"ελ": {"loss": 1.0}}})


ONCE = {step: step + (10.0 if step >= 5 else 0.0) for step in range(8)}
"""Losses by step: of the first attempt, then of the resumed one."""


def test_a_resumed_run_continues_the_same_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train(tmp_path / "runs" / "pretrain", "mlflow") == []
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("scion")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "runs/pretrain")
    assert run.data.params == {"steps": "8", "betas": "[0.9, 0.99]", "clip": "None"}
    for name, share in (("loss", 1), ("loss.el", 0.5)):
        points = client.get_metric_history(run.info.run_id, name)
        assert sorted((point.step, point.value) for point in points) == [(step, share * ONCE[step]) for step in range(8)]
    scores = client.get_metric_history(run.info.run_id, "evaluation.bits_per_byte")
    assert sorted((point.step, point.value) for point in scores) == [(0, 1.5), (3, 1.5)]


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 300.0)  # on a busy machine W&B's service takes long to start
    assert train(tmp_path, "wandb") == []
    paths = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in paths} == {f"run-{tracked(tmp_path, 0).id}.wandb"}
    losses = [(step, row["loss"]) for path in paths for step, row in history(path) if "loss" in row]
    assert losses == sorted(ONCE.items())
    scores = [step for path in paths for step, row in history(path) if "evaluation/bits_per_byte" in row]
    assert scores == [0, 3]


def history(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for content in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append((int(row["_step"]), row))
    return rows


def records(content: bytes) -> Iterator[bytes]:
    """What LevelDB's log format frames, of which W&B's files are: blocks of 32 KiB, parts with a header of 7 bytes."""
    at, held = 7, b""  # behind W&B's own header
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        held += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


def test_a_run_begun_anew_in_the_same_folder_is_another() -> None:
    assert tracked(Path("/a"), 0).id == tracked(Path("/a"), 7).id
    assert len({tracked(Path("/a"), 0).id, tracked(Path("/b"), 0).id, tracked(Path("/a"), 0, begun="2.0").id}) == 3


def fail(*_: Any, **__: Any) -> Any:
    raise ConnectionError("no route to host")


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_tracker_that_fails_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    module: Any = ModuleType(kind)
    module.init, module.Settings, module.MlflowClient = fail, dict, fail
    entities: Any = ModuleType("mlflow.entities")
    entities.Metric = entities.Param = fail
    monkeypatch.setitem(sys.modules, kind, module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    warnings = list[str]()
    sinks = MetricWriters(tracked(tmp_path, 0), [kind], [], warnings.append)
    for step in range(100):
        sinks.step(entry(step, 1.0))
    sinks.close()
    for thread in threading.enumerate():
        if thread.name == f"track-{kind}":
            thread.join(10)
    assert len(warnings) == 1
    assert f"{kind} shows no more of this run" in warnings[0]
    assert "no route to host" in warnings[0]


def test_a_tracker_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "MAX_QUEUED", 50)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda run: time.sleep(60))
    warnings, began = list[str](), time.perf_counter()
    sinks = MetricWriters(tracked(tmp_path, 0), ["wandb"], [], warnings.append)
    for step in range(200):
        sinks.step(entry(step, 1.0))
    sinks.close()
    assert time.perf_counter() - began < 10
    assert len(warnings) == 1


@pytest.mark.parametrize(("kind", "job", "section"), [("wandb", "pretrain", "pretrain"), ("mlflow", "embed", "embed")])
def test_a_library_that_is_not_installed_is_named_before_anything_starts(
    tmp_path: Path, source_folder: str, monkeypatch: pytest.MonkeyPatch, kind: str, job: str, section: str
) -> None:
    text = f"text: t\npairs: p\ntest_pairs: q\nsource_model: {source_folder}\noutput: {tmp_path}/run\nshard: {{length: 64}}\n"
    (tmp_path / "a.yaml").write_text(text)
    config = configs.load(str(tmp_path / "a.yaml"), [f"{section}.train.track=[{kind}]"])
    preflight.check(config, job)
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(
        ConfigError, match=rf"{section}\.train\.track: {kind} is not installed.*pip install 'scion-lm\[{kind}\]'"
    ):
        preflight.check(config, job)
    preflight.check(config, "shard")
