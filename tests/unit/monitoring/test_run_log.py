"""The log holds each step until the kill, and counts attempts that died in the same step."""

import json
import resource
import time
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.artifacts import storage
from trainer.monitoring import run_log
from trainer.monitoring.run_log import RunLog, deaths, read, steps

MEMORY = "memory://test-runlog"


def attempt(uri: str, *entries: dict[str, Any]) -> None:
    log = RunLog(uri)
    for entry in entries:
        log.write(**entry)
    log.sync()


def start(step: int) -> dict[str, Any]:
    return {"kind": "start", "next_step": step}


def step_entries(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "step", "step": number, **more} for number in numbers]


def test_a_line_is_there_after_each_write(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path / "log"))
    assert not (tmp_path / "log").exists()
    for count in range(1, 6):
        log.write("step", step=count, loss=0.5, streams={"el": "λόγος\u2028"})
        (path,) = (tmp_path / "log").iterdir()
        lines = path.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, count + 1))
        assert path.read_bytes().endswith(b"}\n")
    log.sync()
    log.sync()
    assert len(read(str(tmp_path / "log"))[0]) == 5
    assert read(str(tmp_path / "log"))[0][0]["streams"] == {"el": "λόγος\u2028"}


def test_attempts_come_in_their_order(uri: str) -> None:
    assert read(uri) == []
    for number in range(4):
        attempt(uri, start(number), *step_entries(number))
    assert [entries[0]["next_step"] for entries in read(uri)] == [0, 1, 2, 3]
    assert all([entry["kind"] for entry in entries] == ["start", "step"] for entries in read(uri))


def test_a_last_line_cut_anywhere_is_left_out(tmp_path: Path) -> None:
    uri = str(tmp_path / "log")
    attempt(uri, start(0), *step_entries(0, 1, loss=1.5, name="ή"))
    (path,) = (tmp_path / "log").iterdir()
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [entry.get("step") for entry in read(uri)[0]] == [None, 0], cut
    path.write_bytes(whole[:-1])
    assert [entry["step"] for entry in steps(read(uri))] == [0, 1]
    attempt(uri, start(1), *step_entries(1, 2))
    path.write_bytes(whole[: last + 20])
    assert [entry["step"] for entry in steps(read(uri))] == [0, 1, 2]


def test_of_a_step_that_came_several_times_the_last_counts(uri: str) -> None:
    attempt(uri, start(0), *step_entries(0, 1, 2, loss=1.0))
    attempt(uri, start(1), *step_entries(1, 2, 3, loss=2.0))
    attempt(uri, start(3), *step_entries(3, loss=3.0), {"kind": "back", "next_step": 2}, *step_entries(2, loss=4.0))
    assert [(entry["step"], entry["loss"]) for entry in steps(read(uri))] == [(0, 1.0), (1, 2.0), (2, 4.0), (3, 3.0)]


@pytest.mark.parametrize("room", [0, 7])
def test_a_line_for_which_there_was_no_room_comes_with_the_next(tmp_path: Path, room: int) -> None:
    """The system writes what fits and then no more, as on a full disk."""
    log, limits = RunLog(str(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    log.write("step", step=0)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, limits[1]))
    try:
        log.write("step", step=1)
        log.sync()
        assert path.read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write("step", step=2)
    assert path.read_bytes().startswith(whole)
    assert [entry["step"] for entry in read(str(tmp_path))[0]] == [0, 1, 2]


def test_an_object_that_could_not_be_put_is_put_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(uri: str, content: bytes) -> None:
        raise OSError(5, "Input/output error")

    storage.remove(MEMORY)
    log = RunLog(MEMORY)
    log.write("step", step=0)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", away)
        log.sync()
    assert storage.files(MEMORY) == []
    log.write("step", step=1)
    log.sync()
    assert [entry["step"] for entry in read(MEMORY)[0]] == [0, 1]
    assert len(storage.files(MEMORY)) == 1


def test_an_object_store_gets_numbered_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.remove(MEMORY)
    now = [100.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    log = RunLog(MEMORY)
    log.write("start", next_step=0)
    assert storage.files(MEMORY) == []
    for step in range(6):
        now[0] += 4.0
        log.write("step", step=step)
    assert len(storage.files(MEMORY)) == 2
    assert [entry["kind"] for entry in read(MEMORY)[0]] == ["start", *["step"] * 6]
    log.write("step", step=6)
    assert [entry["step"] for entry in steps(read(MEMORY))] == list(range(6))
    log.sync()
    log.sync()
    assert [entry["step"] for entry in steps(read(MEMORY))] == list(range(7))
    names = storage.files(MEMORY)
    assert [name.partition("-")[2] for name in names] == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    assert len({name.partition("-")[0] for name in names}) == 1
    assert len(read(MEMORY)) == 1


class ImmediateExecutor(ThreadPoolExecutor):
    """Finishes each job before `submit` returns."""

    def submit(self, *job: Any, **options: Any) -> Future[Any]:
        future = super().submit(*job, **options)
        wait([future])
        return future


@pytest.mark.parametrize("harm", ["none", "died before it removed", "could not be put"])
def test_many_objects_are_merged_and_no_line_is_lost_or_doubled(monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    storage.remove(MEMORY)
    monkeypatch.setattr(run_log, "OBJECTS_PER_MERGE", 8)
    monkeypatch.setattr(run_log, "ThreadPoolExecutor", ImmediateExecutor)
    put = storage.write_bytes

    def away(uri: str, content: bytes) -> None:
        if uri.count("-") > 2:
            raise OSError(5, "Input/output error")
        put(uri, content)

    with monkeypatch.context() as patch:
        if harm == "died before it removed":
            patch.setattr(run_log.storage, "remove", lambda uri: None)
        if harm == "could not be put":
            patch.setattr(run_log.storage, "write_bytes", away)
        log = RunLog(MEMORY)
        for step in range(20):
            log.write("step", step=step)
            log.sync()
    assert [entry["step"] for entry in read(MEMORY)[0]] == list(range(20))
    assert len(storage.files(MEMORY)) == {"none": 2 + 4, "died before it removed": 2 + 20, "could not be put": 20}[harm]


def test_a_log_that_is_merged_while_it_is_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.remove(MEMORY)
    attempt(MEMORY, start(0), *step_entries(0))
    (name,) = storage.files(MEMORY)
    get = storage.read_bytes

    def late(uri: str) -> bytes:
        if uri.endswith(name):
            content = get(uri)
            storage.write_bytes(uri.replace("000000.jsonl", "000000-000255.jsonl"), content)
            storage.remove(uri)
        return get(uri)

    monkeypatch.setattr(run_log.storage, "read_bytes", late)
    assert [entry["kind"] for entry in read(MEMORY)[0]] == ["start", "step"]


def test_attempts_that_died_in_the_same_step_are_counted(uri: str) -> None:
    attempt(uri, {"kind": "driver"})
    for number in range(1, 4):
        attempt(uri, start(4), *step_entries(4, 5, 6))
        assert deaths(read(uri)) == {"count": number, "step": 7}


def test_an_attempt_that_died_before_its_first_step_died_in_that(uri: str) -> None:
    attempt(uri, {"kind": "driver"})
    attempt(uri, start(0), *step_entries(0, 1))
    attempt(uri, start(2))
    attempt(uri, start(1), *step_entries(1), {"kind": "checkpoint", "next_step": 1})
    assert deaths(read(uri)) == {"count": 3, "step": 2}


@pytest.mark.parametrize("kind", ["driver", "stopped", "finished", "error", "preempted"])
def test_an_attempt_that_did_not_die_is_where_counting_ends(uri: str, kind: str) -> None:
    died = [start(4), *step_entries(4, 5)]
    attempt(uri, *died)
    attempt(uri, *died)
    attempt(uri, *died, {"kind": kind, "next_step": 6})
    assert deaths(read(uri)) == {"count": 0, "step": 0}
    attempt(uri, *died)
    attempt(uri, *died)
    assert deaths(read(uri)) == {"count": 2, "step": 6}


def test_deaths_in_other_steps_are_not_counted(uri: str) -> None:
    attempt(uri, start(0), *step_entries(0, 1, 2))
    attempt(uri, start(0), *step_entries(0, 1))
    attempt(uri, start(0), *step_entries(0, 1, 2))
    assert deaths(read(uri)) == {"count": 1, "step": 3}
    attempt(uri, start(0), *step_entries(0, 1, 2))
    assert deaths(read(uri)) == {"count": 2, "step": 3}


def test_deaths_with_other_micro_batches_are_not_counted(uri: str) -> None:
    """Each had half the rows of the one before, for which there was no memory."""
    for micro in (8, 4, 2):
        attempt(uri, start(3) | {"micro": micro})
        assert deaths(read(uri)) == {"count": 1, "step": 3}
    attempt(uri, start(3) | {"micro": 2})
    assert deaths(read(uri)) == {"count": 2, "step": 3}


def test_nothing_has_died_of_nothing(uri: str) -> None:
    assert deaths(read(uri)) == {"count": 0, "step": 0}
    attempt(uri, {"kind": "evaluation", "step": 3})
    assert deaths(read(uri)) == {"count": 0, "step": 0}


def test_a_preempted_attempt_did_not_die_of_a_step_although_it_saved_and_went_on(uri: str) -> None:
    """As the loop writes it: the checkpoint comes after the word, and steps until the machine goes."""
    for more in ([], step_entries(6)):
        attempt(uri, {"kind": "driver"})
        preempted = [
            start(4),
            *step_entries(4, 5),
            {"kind": "preempted", "next_step": 6},
            {"kind": "checkpoint", "next_step": 6},
        ]
        attempt(uri, *preempted, *more)
        assert deaths(read(uri))["count"] == 0


def test_an_attempt_that_went_back_died_where_it_went_on(uri: str) -> None:
    """Step 3 kills; the first attempt had been beyond it and had gone back for another reason."""
    attempt(uri, {"kind": "driver"})
    attempt(uri, start(0), *step_entries(0, 1, 2, 3, 4), {"kind": "back", "step": 4, "next_step": 2}, *step_entries(2))
    attempt(uri, start(2), *step_entries(2))
    attempt(uri, start(2), *step_entries(2))
    assert deaths(read(uri)) == {"count": 3, "step": 3}
    attempt(uri, start(2), *step_entries(2, 3, 4), {"kind": "back", "step": 4, "next_step": 3})
    assert deaths(read(uri)) == {"count": 4, "step": 3}


def test_attempts_are_in_order_whatever_the_clocks_of_their_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose clock was ahead came after the workers that died later: their deaths were never counted."""
    clock = [1_000_000]
    monkeypatch.setattr(run_log.time, "time_ns", lambda: clock[0] * 10**9)
    (tmp_path / ".nfs0001").write_text("of the file system")
    driver = RunLog(str(tmp_path))
    driver.write("driver")
    (tmp_path / ".nfs0001").unlink()
    clock[0] -= 120
    for attempt in range(3):
        log = RunLog(str(tmp_path))
        log.write("start", next_step=5, attempt=attempt)
        log.write("step", step=5)
        log.write("step", step=6)
    attempts = run_log.read(str(tmp_path))
    assert [entries[0].get("attempt") for entries in attempts] == [None, 0, 1, 2]
    assert run_log.deaths(attempts) == {"count": 3, "step": 7}


def test_other_files_in_the_folder_are_no_attempts(tmp_path: Path) -> None:
    """It hid that the same step had killed three attempts, and all clocks."""
    for _ in range(4):
        log = RunLog(str(tmp_path))
        log.write("start", next_step=7)
    for name in ("notes.txt", ".DS_Store", ".nfs0001", "sub/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hi\n")
    assert run_log.deaths(run_log.read(str(tmp_path), 3)) == {"count": 3, "step": 7}
    future = f"{time.time_ns() + 10**15:020d}"
    (tmp_path / f"{future}-000000.jsonl").write_text('{"kind": "start", "next_step": 7}\n')
    RunLog(str(tmp_path)).write("start", next_step=8)
    assert [entries[0]["next_step"] for entries in run_log.read(str(tmp_path))] == [7, 7, 7, 7, 7, 8]


def test_an_empty_log_file_is_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk leaves it."""
    RunLog(str(tmp_path)).write("start", next_step=7)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    log = RunLog(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(run_log.os, "makedirs", fail)
        log.write("start", next_step=8)  # stays in memory until `sync`
    with monkeypatch.context() as patch:
        patch.setattr(run_log.os, "fsync", fail)
        log.sync()
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / f"{time.time_ns() + 10**9:020d}-000000.jsonl").touch()
    assert [entries[0]["kind"] for entries in run_log.read(str(tmp_path))] == ["start"]


def test_a_long_log_of_many_languages_is_read_in_little_memory(tmp_path: Path) -> None:
    """One of 100,000 steps in 200 languages has 1.1 GB; the driver was killed when the training had ended."""
    streams = {f"l{number:03d}": {"loss": 2.3456789012345 + number, "targets": 512} for number in range(200)}
    attempt(str(tmp_path), start(0), *step_entries(*range(300), loss=2.0, streams=streams))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert steps(read(str(tmp_path)))[7]["streams"] == streams
    tracemalloc.start()
    attempts = read(str(tmp_path), fields=("step", "next_step", "loss"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < size / 4
    assert [entry["loss"] for entry in steps(attempts)] == [2.0] * 300
    assert attempts[0][0].keys() == {"kind", "time", "next_step"}
    assert attempts[0][1].keys() == {"kind", "time", "step", "loss"}
    assert deaths(read(str(tmp_path), 1, run_log.DEATH_FIELDS)) == {"count": 1, "step": 300}
