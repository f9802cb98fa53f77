"""Checkpoints that cannot be saved, or whose bytes have changed."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipeline.artifacts import storage
from data_pipeline.errors import CorruptError, TrainingError
from tests.flaky_storage import Flaky, HttpError, failing, flaky  # noqa: F401
from trainer.checkpoints import restore, writer
from trainer.checkpoints.state import RunState
from trainer.checkpoints.store import BAD, COMMITTED, Store
from trainer.checkpoints.writer import CheckpointWriter
from trainer.ledger import ledger
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import step_of


class Writer:
    def save(self, state_dict: Any, path: str) -> None:
        raise AssertionError("DeepSpeed must not write by itself")


class Engine:
    """DeepSpeed's engine as far as checkpoints go: one number."""

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.checkpoint_engine, self.module = value, Writer(), torch.nn.Identity()

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        content, path = {"value": torch.tensor(self.value)}, os.path.join(folder, tag, "states.pt")
        self.checkpoint_engine.save(state_dict=content, path=path)  # by name, as DeepSpeed does

    def zero_optimization_stage(self) -> int:
        return 1

    def load_checkpoint(self, folder: str, tag: str, load_module_strict: bool) -> None:
        self.value = float(torch.load(os.path.join(folder, tag, "states.pt"))["value"])


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "checkpoints"), keep=3)


def save(engine: Engine, state: RunState, store: Store) -> None:
    saver = CheckpointWriter(engine, store, Ledger(store.uri + "/../ledger", 0))
    saver.begin(state)
    saver.finish(state)


def save_steps(store: Store, *steps: int) -> RunState:
    state = RunState(identity="a")
    for step in steps:
        state.next_step = step
        save(Engine(step / 10), state, store)
    return state


def test_a_run_resumes_from_the_newest_checkpoint(store: Store) -> None:
    engine = Engine()
    assert restore.restore(engine, store, "a") == RunState(identity="a")
    save_steps(store, 2, 4)
    assert restore.restore(engine, store, "a").next_step == 4
    assert engine.value == pytest.approx(0.4)


@pytest.mark.parametrize(("at_most", "step"), [(100, 90), (90, 90), (89, 20), (20, 20), (19, 20), (-40, 20)])
def test_a_rollback_takes_the_newest_checkpoint_not_after_a_step_or_else_the_earliest(
    store: Store, at_most: int, step: int
) -> None:
    save_steps(store, 20, 90, 110)
    assert restore.restore(Engine(), store, "a", at_most).next_step == step


def test_a_rollback_tries_earlier_checkpoints_before_later_ones_if_some_are_torn(store: Store) -> None:
    save_steps(store, 20, 90, 110)
    for step in (90, 20):
        name = next(name for name in store.usable() if step_of(name) == step)
        os.remove(Path(store.uri, name, "ds", "states.pt"))
    assert restore.restore(Engine(), store, "a", 100).next_step == 110


@pytest.mark.parametrize("path", ["ds/states.pt", "state.json", "manifest-00000.json", "COMMITTED"])
def test_a_changed_checkpoint_falls_back_to_the_one_before(store: Store, path: str) -> None:
    save_steps(store, 2, 4, 6)
    newest = Path(store.uri, store.usable()[0])
    (newest / path).write_bytes((newest / path).read_bytes()[:-2])
    engine = Engine()
    assert restore.restore(engine, store, "a").next_step == 4
    assert engine.value == pytest.approx(0.4)
    assert path in json.loads((newest / BAD).read_text())["why"]
    assert len(store.usable()) == 2


def test_a_run_without_an_intact_checkpoint_does_not_silently_start_again(store: Store) -> None:
    save_steps(store, 2, 4)
    for name in store.usable():
        os.remove(Path(store.uri, name, "ds", "states.pt"))
    with pytest.raises(CorruptError, match="no checkpoint is intact"):
        restore.restore(Engine(), store, "a")


@pytest.mark.parametrize("error", [TimeoutError("no answer"), HttpError("503")])
@pytest.mark.parametrize("path", ["states.pt", "state.json", "manifest-", "COMMITTED", "/checkpoints"])
def test_a_read_that_fails_for_a_moment_is_tried_again(flaky, path: str, error: Exception) -> None:  # noqa: F811
    store = Store("flaky://run/checkpoints", keep=3)
    save_steps(store, 2, 4)
    Flaky.fault = failing("read|info|list", path, error, times=3)
    engine = Engine()
    assert restore.restore(engine, store, "a").next_step == 4
    assert engine.value == pytest.approx(0.4)
    assert len(store.usable()) == 2


@pytest.mark.parametrize("path", ["states.pt", "state.json", "manifest-", "COMMITTED", "/checkpoints"])
def test_storage_that_stays_away_condemns_no_checkpoint(flaky, path: str) -> None:  # noqa: F811
    store = Store("flaky://run/checkpoints", keep=3)
    save_steps(store, 2, 4)
    before = store.usable()
    Flaky.fault = failing("read|info|list", path, TimeoutError("no answer"))
    with pytest.raises(OSError, match="no answer"):
        restore.restore(Engine(), store, "a")
    Flaky.fault = None
    assert store.usable() == before
    assert restore.restore(Engine(), store, "a").next_step == 4


def test_a_bad_checkpoint_that_cannot_be_marked_is_passed_over_once(flaky) -> None:  # noqa: F811
    store = Store("flaky://run/checkpoints", keep=3)
    save_steps(store, 2, 4)
    storage.write_bytes(storage.join(store.uri, store.usable()[0], "ds", "states.pt"), b"torn")
    Flaky.fault = failing("write", BAD, HttpError("503"))
    assert restore.restore(Engine(), store, "a").next_step == 2
    storage.write_bytes(storage.join(store.uri, store.usable()[1], "ds", "states.pt"), b"torn")
    with pytest.raises(CorruptError, match="no checkpoint is intact"):
        restore.restore(Engine(), store, "a")


def test_a_clean_up_that_fails_costs_no_save(flaky) -> None:  # noqa: F811
    store = Store("flaky://run/checkpoints", keep=3)
    state = save_steps(store, 0, 2, 4, 6)
    Flaky.fault = failing("remove", "step_", HttpError("503"))
    saver = CheckpointWriter(Engine(), store, Ledger("flaky://run/ledger", 0))
    for step in (8, 10, 12, 14):
        state.next_step = step
        saver.begin(state)
        result = saver.finish(state)
        assert (result.failure, state.missed) == ("", [])
        assert "503" in result.prune_failure
    Flaky.fault = None
    assert step_of(store.usable()[0]) == 14
    assert len(store.usable()) == 8
    save(Engine(), state, store)
    assert len(store.usable()) == 4


def until(ready: Callable[[], bool]) -> None:
    for _ in range(2000):
        if ready():
            return
        time.sleep(0.005)
    raise AssertionError("not in 10 s")


def test_training_continues_while_a_checkpoint_is_committed(flaky) -> None:  # noqa: F811
    """The object store answers the commit late: no call waits for it, and it counts only once it is there."""
    store, state = Store("flaky://run/checkpoints", keep=1), RunState(next_step=2)
    late, answer = threading.Event(), threading.Event()

    def slow(asked: str, path: str) -> None:
        if COMMITTED in path and asked == "write":
            late.set()
            assert answer.wait(10)

    saver = CheckpointWriter(Engine(), store, Ledger("flaky://run/ledger", 0))
    Flaky.fault = slow
    saver.begin(state)
    until(lambda: saver.is_written)
    assert saver.finish(state, wait=False) is None
    assert late.wait(10)
    assert not saver.is_written
    assert (state.lineage, store.usable()) == ([], [])
    answer.set()
    until(lambda: saver.is_written)
    ended = saver.finish(state, wait=False)
    assert (ended.name, ended.failure) == (state.lineage[0], "")
    assert store.usable() == state.lineage
    assert saver.finish(state) is None


@pytest.mark.parametrize("wait", [True, False])
def test_a_commit_that_fails_behind_the_step_gives_its_rows_to_the_next(flaky, wait: bool) -> None:  # noqa: F811
    store, state, book = Store("flaky://run/checkpoints", keep=1), RunState(next_step=2), Ledger("flaky://run/ledger", 0)
    saver = CheckpointWriter(Engine(), store, book)
    book.give_back([rows := ledger.SCHEMA.empty_table()])
    Flaky.fault = failing("write", COMMITTED, HttpError("503"))
    saver.begin(state)
    if not wait:
        until(lambda: saver.is_written)
        assert saver.finish(state, wait=False) is None
    assert "503" in saver.finish(state).failure
    assert (state.lineage, len(state.missed), store.usable()) == ([], 1, [])
    assert book.take() == [rows]


def test_another_run_s_checkpoint_is_refused(store: Store) -> None:
    save_steps(store, 2)
    with pytest.raises(CorruptError, match="another run"):
        restore.restore(Engine(), store, "b")


def test_two_saves_may_fail_and_the_third_ends_the_run_with_the_last_good_one_intact(store: Store, monkeypatch) -> None:
    state = save_steps(store, 2)
    before = sorted(Path(store.uri).rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(writer.torch, "save", full)
        for _ in range(2):
            state.next_step += 1
            save(Engine(), state, store)
        assert sorted(Path(store.uri).rglob("*")) == before
    state.next_step += 1
    save(Engine(0.7), state, store)
    assert state.missed == []
    monkeypatch.setattr(writer.torch, "save", full)
    for _ in range(2):
        save(Engine(), state, store)
    with pytest.raises(TrainingError, match=r"3 checkpoints in a row could not be saved \(rank 0: .*No space left"):
        save(Engine(), state, store)
    engine = Engine()
    assert restore.restore(engine, store, "a").next_step == 5
    assert engine.value == pytest.approx(0.7)


def test_a_failed_save_is_reported_once(store: Store, monkeypatch) -> None:
    state, saver = save_steps(store, 2), CheckpointWriter(Engine(), store, Ledger(store.uri + "-ledger", 0))
    with monkeypatch.context() as patch:
        patch.setattr(writer.torch, "save", full)
        saver.begin(state)
        result = saver.finish(state)
    assert "No space left" in result.failure
    assert saver.finish(state) is None
    saver.begin(state)
    assert saver.finish(state).failure == ""


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_conversion_that_storage_interrupts_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only OSErrors are tried again by the next attempt; as a TrainingError it ended the run."""
    engine: Any = Engine()
    engine.optimizer = type("Optimizer", (), {"param_groups": [{"use_muon": False}]})()
    save_steps(store, 3)
    name = store.usable()[0]
    state = store.state(name) | {"world": 2}
    monkeypatch.setattr(Store, "state", lambda store, name: dict(state))

    def fails(error: Exception) -> Callable[..., None]:
        def convert(native: str, made: str, stage: int) -> None:
            raise error

        return convert

    monkeypatch.setattr(restore.universal_checkpoint, "convert", fails(OSError("no answer")))
    with pytest.raises(OSError, match="no answer"):
        restore.restore(engine, store, "a")
    monkeypatch.setattr(restore.universal_checkpoint, "convert", fails(CorruptError("cannot be converted.", name)))
    with pytest.raises(TrainingError, match="cannot be converted"):
        restore.restore(engine, store, "a")
