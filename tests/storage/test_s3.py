"""Files and leases on S3, also while it fails."""

import os
import threading
from pathlib import Path

import fsspec
import pytest

from data_pipeline.artifacts import creation, retries, storage
from data_pipeline.artifacts import lease as leases
from data_pipeline.artifacts.lease import hold
from data_pipeline.errors import ArtifactError
from tests.storage.faulty_proxy import Faults


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "WAITS", (0.05,) * 8)
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.0)


def test_files_are_written_listed_read_and_removed(folder: str) -> None:
    for name in ("a", "b/c", "b/d"):
        storage.write_bytes(f"{folder}/{name}", name.encode())
    assert storage.files(folder) == ["a", "b/c", "b/d"]
    assert storage.read_bytes(f"{folder}/b/c") == b"b/c"
    storage.remove(f"{folder}/b")
    assert storage.files(folder) == ["a"]
    assert not storage.exists(f"{folder}/b/c")
    assert storage.expand(f"{folder}/*") == [f"{folder}/a"]


def test_a_large_file_arrives_in_parts_and_whole(folder: str, tmp_path: Path) -> None:
    content = os.urandom((120 << 20) + 17)  # s3fs sends parts of 50 MB
    (tmp_path / "large").write_bytes(content)
    storage.put_file(f"{folder}/large", str(tmp_path / "large"))
    with storage.local_file(f"{folder}/large") as copy:
        assert Path(copy).read_bytes() == content
    assert "-" in fsspec.filesystem("s3").info(f"{folder}/large")["ETag"]  # of an upload in parts


def test_one_of_many_creates_a_file(folder: str) -> None:
    start, won = threading.Barrier(12), list[int]()

    def contend(number: int) -> None:
        start.wait()
        if creation.create(f"{folder}/mark", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(f"{folder}/mark") == str(won[0]).encode()


def test_a_file_whose_creation_was_not_answered_is_ours(folder: str, faults: Faults) -> None:
    faults.next_ones["PUT"] = ["lost"]
    assert creation.create(f"{folder}/mark", b"ours")
    assert not creation.create(f"{folder}/mark", b"others")
    assert faults.seen["lost"] == 1


@pytest.mark.parametrize("kind", ["busy", "lost", "slow"])
def test_every_write_and_read_gets_through(folder: str, faults: Faults, kind: str) -> None:
    faults.share, faults.kinds = 0.3, (kind,)
    names = [f"{place % 3}/{place}" for place in range(24)]
    for name in names:
        storage.write_bytes(f"{folder}/{name}", name.encode() * 100)
    assert storage.files(folder) == sorted(names)
    assert all(storage.read_bytes(f"{folder}/{name}") == name.encode() * 100 for name in names)
    storage.remove(folder)
    assert storage.files(folder) == []
    assert faults.seen[kind] > 5


def test_a_store_that_is_down_is_an_error_and_not_empty(folder: str, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "WAITS", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    faults.share, faults.kinds = 1.0, ("busy",)
    for ask in (storage.files, storage.exists, storage.read_bytes, storage.remove):
        with pytest.raises(OSError, match=r"(?i)slow|unavailable"):
            ask(f"{folder}/a")


def test_one_run_at_a_time_holds_a_lease(folder: str, faults: Faults) -> None:
    faults.share = 0.2
    uri = f"{folder}/run.lease.json"
    with hold(uri) as lease:
        lease.check()
        with pytest.raises(ArtifactError, match="another run is writing here"), hold(uri):
            pass
        lease.check()
    assert not storage.exists(uri)
    with hold(uri) as again:
        again.check()
