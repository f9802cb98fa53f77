"""A checkpoint is whole or does not count, whatever interrupts its writing."""

import contextlib
import itertools
import json
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.artifacts import artifact, lease, storage
from data_pipeline.artifacts.artifact import Spec
from data_pipeline.errors import CorruptError
from tests.flaky_storage import Flaky, every, flaky  # noqa: F401
from trainer.checkpoints import store as stores
from trainer.checkpoints.store import BAD, COMMITTED, Store
from trainer.engine.guards import WINDOW, rollback_step
from trainer.ledger.step_name import new_name, step_of


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "checkpoints"), keep=3)
    storage.remove("memory://test-store")
    return Store("memory://test-store", keep=3)


def write(store: Store, step: int, ranks: int = 2, commit: bool = True) -> str:
    name = new_name(step, ranks)
    for rank in range(ranks):
        with store.part(name, rank) as folder:
            os.makedirs(f"{folder}/ds")
            Path(folder, "ds", f"optimizer-{rank}.pt").write_bytes(bytes([step, rank]) * 50)
            if rank == 0:
                Path(folder, "state.json").write_text(f'{{"next_step": {step}}}')
    if commit:
        store.commit(name, ranks)
        store.prune(name)
    return name


def test_the_newest_committed_is_taken_and_older_ones_go(store: Store) -> None:
    names = [write(store, step) for step in (2, 4, 6, 8)]
    write(store, 10, commit=False)
    assert store.usable() == [*names[:0:-1], names[0]]  # the first of these steps, to go back to
    assert step_of(store.usable()[0]) == 8
    store.verify(names[-1])
    with store.local_copy(names[-1]) as folder:
        assert Path(folder, "ds", "optimizer-1.pt").read_bytes() == bytes([8, 1]) * 50
    last = write(store, 12)
    assert {path.split("/")[0] for path in storage.files(store.uri)} == {names[0], *names[2:], last}


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(3, 5))
def test_a_run_that_goes_back_twice_finds_checkpoints_that_are_a_window_older(gaps: list[int], keep: int) -> None:
    """Names only: pruned after each commit, as `Store.prune` does."""
    usable, all_of_them = list[str](), list[str]()
    for step in itertools.accumulate([0, *gaps]):
        all_of_them.insert(0, name := new_name(step, 1))
        usable = [name, *usable]
        survivors = {*usable[:keep], *stores.rollback_targets(usable)}
        usable = [one for one in usable if one in survivors]
        assert len(usable) <= keep + 4
        assert usable[:keep] == all_of_them[:keep]
        # As long as there is one in each window of 64 steps.
        if all(gap <= WINDOW for gap in gaps):
            for before in (0, 1):
                limit = rollback_step(step, before)
                assert limit < 0 or any(limit - 2 * WINDOW <= step_of(one) <= limit for one in usable), (limit, usable)


@pytest.mark.usefixtures("flaky")
def test_sixteen_ranks_save_on_a_store_in_which_every_tenth_operation_fails() -> None:
    Flaky.fault = every(10, TimeoutError("no answer"))
    names = [write(Store("flaky://run/checkpoints", keep=3), step, ranks=16) for step in range(1, 9)]
    store = Store("flaky://run/checkpoints", keep=3)
    assert store.usable()[:3] == names[:-4:-1]
    store.verify(names[-1])


def test_checkpoints_that_a_run_went_back_before_are_not_taken_again_and_go(store: Store) -> None:
    first, *later = [write(store, step) for step in (2, 70, 140)]
    store.mark_abandoned(2)
    assert store.usable() == [first]
    again = write(store, 2)
    assert store.usable() == [again, first]
    last = write(store, 150)
    assert store.usable()[0] == last
    assert not {path.split("/")[0] for path in storage.files(store.uri)} & set(later)


def test_a_part_that_is_missing_is_not_committed(store: Store) -> None:
    name = new_name(3, 2)
    with store.part(name, 0) as folder:
        Path(folder, "a").write_bytes(b"a")
    with pytest.raises(CorruptError, match="rank 1 is missing"):
        store.commit(name, 2)
    assert store.usable() == []


def test_a_bad_one_is_passed_over_and_counts_for_no_other(store: Store) -> None:
    first, second = write(store, 2), write(store, 4)
    store.mark_bad(second, "torn")
    assert store.usable() == [first]
    third = write(store, 4)
    assert store.usable() == [third, first]
    assert second != third


class Crashed(BaseException):
    pass


def test_a_crash_after_any_write_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the disk is the last one in turn."""
    calls = [(storage, "write_bytes"), (storage, "remove"), (stores.shutil, "move"), (stores.os, "makedirs")]
    real = {name: getattr(module, name) for module, name in calls}
    points = 0
    while True:
        points += 1
        store = Store(str(tmp_path / str(points)), keep=1)
        old = write(store, 2)
        left = [points]

        def counted(name: str, *args: object, left: list[int] = left, **kwargs: object) -> object:
            left[0] -= 1
            last = left[0] == 0
            answer = real[name](*args, **kwargs)
            if last:
                raise Crashed
            return answer

        with monkeypatch.context() as patch:
            for module, name in calls:
                patch.setattr(module, name, lambda *args, name=name, **kwargs: counted(name, *args, **kwargs))
            try:
                write(store, 4)
            except Crashed:
                ended = False
            else:
                ended = True
        usable = store.usable()
        assert usable
        store.verify(usable[0])
        assert step_of(usable[0]) in (2, 4)
        assert step_of(usable[0]) == 4 or usable == [old]
        if ended:
            break
    assert points > 16


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path), keep=3)
    name = write(store, 7)
    files, draw = storage.files(f"{tmp_path}/{name}"), random.Random(0)
    for _ in range(1000):
        path = tmp_path / name / draw.choice(files)
        content = bytearray(path.read_bytes())
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(CorruptError):
            store.verify(name)
        path.write_bytes(content)
    store.verify(name)


def test_ranks_check_shares_that_cover_all_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path), keep=3)
    name = write(store, 7, ranks=3)
    for path in storage.files(f"{tmp_path}/{name}"):
        if path.endswith((COMMITTED, BAD)) or "manifest" in path:
            continue
        whole = (tmp_path / name / path).read_bytes()
        (tmp_path / name / path).write_bytes(whole[:-1])
        caught = 0
        for rank in range(3):
            try:
                store.verify(name, rank, 3)
            except CorruptError:
                caught += 1
        assert caught == 1, path
        (tmp_path / name / path).write_bytes(whole)


def test_a_checkpoint_that_another_process_reads_is_not_pruned(store: Store) -> None:
    """`scion export` of a run that went on found its checkpoint changed: it was removed while it was read."""
    first, read, *_ = [write(store, step) for step in (1, 3, 5)]
    with store.reading(read):
        for step in range(7, 15):
            write(store, step)
        store.verify(read)
        assert read in store.usable()
    write(store, 16)
    assert read not in store.usable()
    assert first in store.usable()  # the earliest, to go back to
    assert not [path for path in storage.files(store.uri) if path.startswith("reading-")]


def test_the_marks_of_readers_that_died_elsewhere_are_watched_once_and_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each held up every later save by half a minute."""
    watched = []
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(lease.time, "sleep", watched.append)
    name = write(store, 1)
    for number in range(3):
        mark = {"token": "x", "host": "elsewhere", "pid": 1, "renewed": time.time() - 3600}
        storage.write_bytes(f"{store.uri}/reading-{name}.{number}.json", json.dumps(mark).encode())
    write(store, 3)
    assert not [path for path in storage.files(store.uri) if path.startswith("reading-")]
    watched.clear()
    write(store, 5)
    assert not watched


def test_a_checkpoint_being_read_stays_when_the_run_has_ended(store: Store) -> None:
    read, newest = write(store, 1), write(store, 3)
    with store.reading(read):
        store.keep_newest()
        assert set(store.usable()) == {read, newest}
    store.keep_newest()
    assert store.usable() == [newest]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_checkpoint_being_read_stays_until_the_next_command(tmp_path: Path, where: str) -> None:
    """The end of the run removed the checkpoint under an export, which called it changed."""
    uri = str(tmp_path / "run") if where == "local" else "memory://test-store-read"
    storage.remove(uri)
    store, reader = Store(f"{uri}/checkpoints", 3), contextlib.ExitStack()
    with artifact.writing(Spec(uri=uri, kind="model", config={}, inputs={}), resumable=True) as draft:
        name = write(store, 1)
        draft.working_folders.append(store.uri)
        reader.enter_context(store.reading(name))
    assert artifact.read(uri, "model", "pretrain")
    artifact.clean_up(uri)
    assert store.usable() == [name]
    assert not artifact.is_clean(uri)
    reader.close()
    artifact.clean_up(uri)
    assert storage.files(uri) == [artifact.FINISHED]
