"""Storage that does not answer does not count as empty, and all its errors are OSErrors."""

import itertools
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fsspec import Callback
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from safetensors.numpy import save_file

from data_pipeline.artifacts import fingerprints, retries, storage
from data_pipeline.artifacts.lease import Lease
from data_pipeline.errors import CorruptError
from data_pipeline.shards import format
from tests.flaky_storage import Flaky, HttpError, every, failing, flaky  # noqa: F401

pytestmark = pytest.mark.usefixtures("flaky")
ERRORS = [TimeoutError("no answer"), HttpError("503"), RuntimeError("Failed to fetch"), ConnectionResetError("peer")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_file_is_not_missing_because_storage_fails(error: Exception) -> None:
    storage.write_bytes("flaky://run/a", b"a")
    assert storage.exists("flaky://run/a")
    assert not storage.exists("flaky://run/b")
    assert storage.files("flaky://run/a") == storage.files("flaky://nowhere") == []
    Flaky.fault = failing("info", "run", error)
    for ask in (storage.exists, storage.files, storage.remove):
        with pytest.raises(OSError, match=str(error)):
            ask("flaky://run/a")


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_of_the_storage_is_an_os_error(error: Exception) -> None:
    storage.write_bytes("flaky://run/a", b"a")
    Flaky.fault = failing("read|write|remove", "run", error)

    def copied() -> None:
        with storage.local_copy("flaky://run"):
            pass

    def put() -> None:
        with storage.local_output("flaky://run") as folder:
            Path(folder, "c").write_bytes(b"c")

    for ask in (
        lambda: storage.read_bytes("flaky://run/a"),
        lambda: fingerprints.sha256("flaky://run/a"),
        lambda: storage.write_bytes("flaky://run/b", b""),
        lambda: storage.remove("flaky://run/a"),
        copied,
        put,
    ):
        with pytest.raises(OSError, match=str(error)):
            ask()


def test_errors_of_the_block_pass_unchanged() -> None:
    storage.write_bytes("flaky://run/a", b"a")
    with pytest.raises(HttpError), storage.local_copy("flaky://run"):
        raise HttpError("of the block")
    with pytest.raises(HttpError), storage.local_output("flaky://run"):
        raise HttpError("of the block")


def test_a_lease_is_not_lost_to_a_time_out() -> None:
    storage.write_bytes("flaky://run/lease", b"{}")
    Flaky.fault = failing("info|read", "lease", TimeoutError("no answer"))
    with pytest.raises(OSError, match="no answer"):
        Lease("flaky://run/lease", "mine").check()


def test_a_local_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    os.symlink(tmp_path / "a", tmp_path / "link")
    assert storage.files(str(tmp_path)) == ["a/b/file", "link/b/file"]
    assert storage.files(str(tmp_path / "a" / "b" / "file")) == storage.files(str(tmp_path / "none")) == []

    def stale(path: str) -> None:
        raise OSError(116, "Stale file handle", path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(OSError, match="Stale"):
        storage.files(str(tmp_path))


def test_retries_end_and_a_missing_file_is_not_retried() -> None:
    calls: list[int] = []

    def request(fails: int, error: Exception) -> int:
        calls.append(1)
        if len(calls) <= fails:
            raise error
        return len(calls)

    assert retries.retry(lambda: request(2, TimeoutError("no answer"))) == 3
    for error, tries in ((TimeoutError("no answer"), 1 + len(retries.WAITS)), (FileNotFoundError("gone"), 1)):
        calls.clear()
        with pytest.raises(type(error)):
            retries.retry(lambda error=error: request(99, error))  # type: ignore[misc]
        assert len(calls) == tries


@pytest.mark.parametrize("error", [TimeoutError("no answer"), HttpError("503"), OSError(5, "Input/output error")])
def test_a_failed_read_does_not_make_a_shard_corrupt(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    uri, rows = "flaky://run/part.parquet", pa.table({"row": list(range(1000))})
    format.write(uri, rows)
    Flaky.fault = failing("read", "part", error, times=3)
    assert format.read_groups(uri).equals(rows)
    content, left, real = storage.read_bytes(uri), [2], MemoryFile.read

    def broken(file: MemoryFile, *arguments: int) -> bytes:
        """The connection breaks in the middle of the file."""
        left[0] -= 1
        if left[0] == 0:
            raise error
        return real(file, *arguments)

    monkeypatch.setattr(MemoryFile, "read", broken)
    assert format.read_groups(uri).equals(rows)
    assert left[0] < 0
    Flaky.fault = failing("read", "part", error)
    with pytest.raises(OSError, match=str(error.args[-1])):
        format.read_groups(uri)
    Flaky.fault = None
    storage.write_bytes(uri, content[:-9])
    with pytest.raises(CorruptError, match="cannot be read"):
        format.read_groups(uri)
    storage.remove(uri)
    with pytest.raises(CorruptError, match="cannot be read"):
        format.read_groups(uri)


def test_a_changed_file_has_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the same size and modification time."""
    path = tmp_path / "weights"
    for settled in (fingerprints.SETTLE_SECONDS, 0.0):
        monkeypatch.setattr(fingerprints, "SETTLE_SECONDS", settled)
        path.write_bytes(b"one")
        os.utime(path, (1e9, 1e9))
        before = fingerprints.fingerprint(str(path))
        assert fingerprints.fingerprint(str(path)) == before
        time.sleep(0.0 if settled else 0.1)  # longer than a tick of the clock that stamps files
        path.write_bytes(b"two")
        os.utime(path, (1e9, 1e9))
        assert fingerprints.fingerprint(str(path)) != before
        path.unlink()


def test_fingerprints_of_an_object_store_are_not_cached() -> None:
    storage.write_bytes("flaky://run/a", b"a")
    before = fingerprints.fingerprint("flaky://run/a")
    calls = Flaky.calls
    fingerprints.fingerprint("flaky://run/a")
    assert Flaky.calls > calls
    storage.write_bytes("flaky://run/a", b"b")
    assert fingerprints.fingerprint("flaky://run/a") != before


@pytest.mark.parametrize("error", ERRORS)
def test_expand_finds_all_files_of_a_flaky_store_and_lists_each_folder_once(error: Exception) -> None:
    """fsspec's isfile and isdir return False where the storage does not answer; once such files were silently left out."""
    for number in range(100):
        storage.write_bytes(f"flaky://run/corpus/{number:02d}.txt", b"text")
        storage.write_bytes(f"flaky://run/corpus/{number:02d}.bin/other.txt", b"text")
    Flaky.fault, Flaky.calls = every(3, error), 0
    expected = [f"flaky://run/corpus/{number:02d}.txt" for number in range(100)]
    assert storage.expand("flaky://run/corpus/*.txt") == storage.expand("flaky://run/corpus") == expected
    assert storage.expand("flaky://run/corpus/07.txt") == expected[7:8]
    assert len(storage.expand("flaky://run/**/*.txt")) == 200
    assert storage.expand("flaky://run/none/*.txt") == storage.expand("flaky://run/none.txt") == []
    calls = Flaky.calls
    assert len(set(fingerprints.fingerprints(expected))) > 1
    assert Flaky.calls - calls < 4


def test_all_writes_arrive_although_every_tenth_operation_fails(tmp_path: Path) -> None:
    Flaky.fault = every(10, TimeoutError("no answer"))
    for number in range(100):
        storage.write_bytes(f"flaky://run/{number}", b"%d" % number)
    with storage.local_output("flaky://run/many") as folder:
        for number in range(100):
            Path(folder, str(number)).write_bytes(b"%d" % number)
    with storage.local_copy("flaky://run") as folder:
        for number in range(100):
            assert Path(folder, str(number)).read_bytes() == Path(folder, "many", str(number)).read_bytes() == b"%d" % number
    for number in range(100):
        storage.remove(f"flaky://run/{number}")
    assert len(storage.files("flaky://run")) == 100


def test_a_request_without_an_answer_times_out_and_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a PUT that hung stopped a training for ever, without a message."""
    monkeypatch.setattr(retries, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(storage, "MANY_FILES_SECONDS", 0.0)
    calls, released = itertools.count(1), threading.Event()

    def hanging(operation: str, path: str) -> None:
        if next(calls) % 10 == 0:
            released.wait()

    Flaky.fault = hanging
    with storage.local_output("flaky://run/many") as folder:
        for number in range(30):
            Path(folder, str(number)).write_bytes(b"%d" % number)
    with storage.local_copy("flaky://run/many") as folder:
        assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {str(n): b"%d" % n for n in range(30)}
    format.write("flaky://run/part.parquet", rows := pa.table({"row": list(range(100))}))
    assert format.read_groups("flaky://run/part.parquet").equals(rows)
    Flaky.fault = lambda operation, path: released.wait() and None
    for ask in (storage.exists, storage.files, storage.remove, storage.read_bytes, fingerprints.sha256, storage.expand):
        with pytest.raises(TimeoutError, match="no answer"):
            ask("flaky://run/many")
    released.set()


def test_a_listing_of_many_folders_may_take_longer_than_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        storage.write_bytes(f"flaky://folders/{number}/file", b"")
    monkeypatch.setattr(retries, "ANSWER_SECONDS", 0.3)
    Flaky.fault = lambda operation, path: time.sleep(0.02)
    assert len(storage.files("flaky://folders")) == 40
    storage.remove("flaky://folders")
    assert storage.files("flaky://folders") == []


def test_a_removal_that_is_answered_late_does_not_remove_newer_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was retried, and the first request then removed the files of the next artefact."""
    for name in ("model.safetensors", "unfinished.json"):
        storage.write_bytes(f"flaky://run/{name}", b"old")
    monkeypatch.setattr(retries, "ANSWER_SECONDS", 0.1)
    late, removed = threading.Event(), []

    def fault(operation: str, path: str) -> None:
        if operation == "remove":
            removed.append(path)
            if len(removed) == 1:
                late.wait()

    Flaky.fault = fault
    threading.Timer(1.0, late.set).start()
    storage.clear("flaky://run", "unfinished.json")
    assert late.is_set()
    assert storage.files("flaky://run") == []
    assert [path.rpartition("/")[2] for path in removed] == ["model.safetensors", "unfinished.json"]

    storage.write_bytes("flaky://run/unfinished.json", b"new")
    monkeypatch.setattr(storage, "LATE_SECONDS", 0.1)
    never = threading.Event()
    Flaky.fault = lambda operation, path: operation == "remove" and never.wait() and None
    with pytest.raises(TimeoutError, match="no answer"):
        storage.clear("flaky://run", "unfinished.json")
    never.set()


def test_a_mount_point_is_emptied_but_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a volume in a pod cannot be removed, nor the file system's own folder in it."""
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "disk" / "left.txt").write_text("of a run before")
    monkeypatch.setattr(storage.os.path, "ismount", lambda path: str(path) == str(tmp_path / "disk"))
    storage.clear(str(tmp_path / "disk"), "unfinished.json")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["lost+found"]


def test_the_draft_of_a_killed_write_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once `scion transfer` learned from it as from the file."""
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", lambda draft, path: None)
        patch.setattr(storage.Path, "unlink", lambda path, missing_ok: None)
        storage.write_bytes(f"{tmp_path}/part-00001.parquet", b"half")
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".draft")
    assert storage.files(str(tmp_path)) == []


def test_a_full_disk_and_missing_credentials_are_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """As botocore's."""

    monkeypatch.setattr(retries, "WAITS", (60.0,))
    for error, kind in ((OSError(28, "No space left on device"), OSError), (NoCredentialsError("none"), PermissionError)):
        Flaky.fault = failing("write", "run", error)
        with pytest.raises(kind):
            storage.write_bytes("flaky://run/a", b"a")


def test_removing_a_folder_with_brackets_in_its_name_removes_no_other() -> None:
    """fsspec reads the name as a pattern; once run[1] removed run1."""
    for name in ("run1/a", "run[1]/a", "run[1]/b/c", "run2/a"):
        storage.write_bytes(f"flaky://run/{name}", b"a")
    storage.remove("flaky://run/run[1]")
    assert storage.files("flaky://run") == ["run1/a", "run2/a"]


def test_files_of_another_process_are_seen_despite_the_listing_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs and others answer `info` from a cached listing; once a lease of another process was not seen."""
    listed: dict[str, list[str]] = {}

    def remembering(fs: Flaky, path: str, detail: bool = True, **options: object) -> object:
        found = MemoryFileSystem.ls(fs, path, detail=True)
        listed.setdefault(fs._strip_protocol(path), [entry["name"] for entry in found])
        return found

    def answering(fs: Flaky, path: str, **options: object) -> object:
        path = fs._strip_protocol(path)
        if path not in listed.get(fs._parent(path), [path]):
            raise FileNotFoundError(path)
        return MemoryFileSystem.info(fs, path)

    monkeypatch.setattr(Flaky, "ls", remembering)
    monkeypatch.setattr(Flaky, "info", answering)
    monkeypatch.setattr(Flaky, "invalidate_cache", lambda fs, path: listed.pop(fs._strip_protocol(path), None), raising=False)
    storage.write_bytes("flaky://run/corpus.txt", b"")
    assert storage.files("flaky://run") == ["corpus.txt"]
    storage.write_bytes("flaky://run/out.lease.json", b"")
    assert storage.exists("flaky://run/out.lease.json")
    assert storage.is_file("flaky://run/out.lease.json")


@pytest.mark.parametrize("way", ["get", "put"])
def test_a_slow_transfer_does_not_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Once large models could not be fetched below 32 MiB/s."""
    monkeypatch.setattr(retries, "ANSWER_SECONDS", 2.0)
    (tmp_path / "weights").write_bytes(bytes(20))
    calls = []

    def slowly(fs: Flaky, one: str, other: str, callback: Callback, **options: object) -> None:
        calls.append(one)
        for _ in range(5):
            time.sleep(0.7)
            callback.relative_update(4)
        if way == "get":
            Path(other).write_bytes(bytes(20))
        else:
            MemoryFileSystem.put_file(fs, one, other)

    storage.write_bytes("flaky://run/model/weights", bytes(20))
    monkeypatch.setattr(Flaky, f"{way}_file", slowly)
    if way == "get":
        with storage.local_copy("flaky://run/model") as folder:
            assert Path(folder, "weights").read_bytes() == bytes(20)
    else:
        storage.put_file("flaky://run/weights", str(tmp_path / "weights"))
    assert len(calls) == 1


def test_colons_in_a_local_path_are_no_chain_of_file_systems(tmp_path: Path) -> None:
    """Once fsspec cut the path there, and all files of a stage were one."""
    uri = f"{tmp_path}/c::d/run"
    assert storage.absolute(uri) == uri
    storage.write_bytes(f"{uri}/a", b"one")
    storage.write_bytes(f"{uri}/b", b"two")
    assert storage.files(uri) == ["a", "b"]
    assert (tmp_path / "c::d" / "run" / "b").read_bytes() == b"two"


def test_weights_can_be_read_by_whoever_reads_other_new_files(tmp_path: Path) -> None:
    """safetensors writes them for their owner alone; a server may run as somebody else."""
    with storage.local_output(str(tmp_path / "model")) as folder:
        save_file({"weight": np.zeros(2, np.float32)}, f"{folder}/model.safetensors")
        Path(folder, "config.json").touch()
    weights, config = (Path(folder, name).stat().st_mode for name in ("model.safetensors", "config.json"))
    assert weights == config
