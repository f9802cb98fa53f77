"""One run at a time writes to a folder, and the next one can, however the previous one ended."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.artifacts import creation, storage
from data_pipeline.artifacts import lease as leases
from data_pipeline.artifacts.lease import TTL_SECONDS, Lease, hold
from data_pipeline.errors import ArtifactError, CorruptError

HERE = socket.gethostname()
PATIENCE = 60.0


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out.lease.json")
    else:
        storage.remove("memory://test-lease")
        yield "memory://test-lease/out.lease.json"
        storage.remove("memory://test-lease")


@pytest.fixture(autouse=True)
def soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests have one writer and need no settling time."""
    if "real_settling_time" not in request.fixturenames:
        monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(leases, "WATCH_SECONDS", 0.05)


@pytest.fixture
def real_settling_time() -> None:
    """Keeps the settling time for concurrent writers."""


@pytest.fixture
def dead_pid() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def put(uri: str, *, token: str = "other", host: str = HERE, pid: int | None = None, age: float = 0.0) -> None:
    """Writes the file as another process would: not with the draft name that a thread of this one may use."""
    content = json.dumps({"token": token, "host": host, "pid": pid or os.getpid(), "renewed": time.time() - age})
    if storage.is_local(uri):
        Path(f"{uri}.by-hand").write_text(content)
        os.replace(f"{uri}.by-hand", uri)
    else:
        storage.write_bytes(uri, content.encode())


def read_lease(uri: str) -> dict:
    return json.loads(storage.read_bytes(uri))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.01)


def test_a_second_holder_is_refused_with_the_name_of_the_first(uri: str) -> None:
    with hold(uri) as lease:
        before = storage.read_bytes(uri)
        with pytest.raises(ArtifactError, match=f"another run is writing here \\({HERE}, process {os.getpid()}, seen 0 s ago"):
            hold(uri).__enter__()
        assert storage.read_bytes(uri) == before
        lease.check()


def test_the_file_is_removed_when_the_block_ends(uri: str) -> None:
    with hold(uri) as lease:
        assert read_lease(uri)["token"] == lease.token
    assert not storage.exists(uri)
    with hold(uri) as next_one:
        assert next_one.token != lease.token


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_file_is_removed_when_the_block_fails(uri: str, error: type[BaseException]) -> None:
    threads = threading.active_count()
    with pytest.raises(error), hold(uri):
        raise error
    assert not storage.exists(uri)
    assert threading.active_count() == threads


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "out.lease.json")
    code = "import os, signal, sys\nfrom data_pipeline.artifacts.lease import hold\n"
    code += "with hold(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code, uri])
    assert killed.returncode == -9
    assert time.time() - read_lease(uri)["renewed"] < TTL_SECONDS
    with hold(uri) as lease:
        assert read_lease(uri)["pid"] == os.getpid()
        lease.check()


def test_a_dead_process_of_this_machine_holds_no_lease(uri: str, dead_pid: int) -> None:
    put(uri, pid=dead_pid)
    with hold(uri) as lease:
        assert read_lease(uri)["token"] == lease.token


def test_the_lease_of_another_machine_expires_by_its_time_alone(uri: str, dead_pid: int) -> None:
    put(uri, host="elsewhere", pid=dead_pid, age=TTL_SECONDS - 10)
    with pytest.raises(ArtifactError, match=rf"\(elsewhere, process {dead_pid}, seen 5\d s ago\)"):
        hold(uri).__enter__()
    assert read_lease(uri)["token"] == "other"
    put(uri, host="elsewhere", pid=dead_pid, age=TTL_SECONDS + 1)
    with hold(uri) as lease:
        lease.check()


def test_a_clock_that_is_ahead_does_not_make_a_lease_look_old(uri: str) -> None:
    put(uri, host="elsewhere", age=-30)
    with pytest.raises(ArtifactError, match="seen 0 s ago"):
        hold(uri).__enter__()


@pytest.mark.parametrize("hours", [-1, 1])
def test_with_a_clock_an_hour_off_renewals_decide(uri: str, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Once a dead holder was waited for while its clock was ahead, and a live one lost its lease if its clock was behind."""
    put(uri, host="elsewhere", age=3600 * hours)
    with hold(uri) as lease:
        lease.check()
    put(uri, host="elsewhere", age=3600 * hours)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 30.0)
    renewal = threading.Timer(0.2, put, [uri], {"host": "elsewhere", "age": 3600 * hours - 10})
    renewal.start()
    with pytest.raises(ArtifactError, match="another run is writing here"):
        hold(uri).__enter__()
    renewal.join()


def test_a_lease_that_is_not_renewed_is_taken_over_from_a_live_process(uri: str) -> None:
    with ExitStack() as former, ExitStack() as latter:
        slow = former.enter_context(hold(uri))
        put(uri, token=slow.token, age=TTL_SECONDS + 1)
        slow.check()
        taker = latter.enter_context(hold(uri))
        with pytest.raises(ArtifactError, match=f"another run has taken over \\({HERE}, process {os.getpid()}\\)"):
            slow.check()
        former.close()
        assert read_lease(uri)["token"] == taker.token
        taker.check()
    assert not storage.exists(uri)


def test_a_lease_is_renewed_while_the_block_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    with hold(uri) as lease:
        for _ in range(3):
            put(uri, token=lease.token, age=TTL_SECONDS + 1)
            wait_until(lambda: time.time() - read_lease(uri)["renewed"] < TTL_SECONDS)
        with pytest.raises(ArtifactError, match="another run is writing here"):
            hold(uri).__enter__()


def test_a_lease_that_was_taken_over_is_not_renewed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.5)
    before = set(threading.enumerate())
    with hold(uri) as lease:
        (renewer,) = set(threading.enumerate()) - before
        put(uri, host="elsewhere", age=5)
        taken = storage.read_bytes(uri)
        renewer.join(PATIENCE)
        assert not renewer.is_alive()
        with pytest.raises(ArtifactError, match="elsewhere"):
            lease.check()
    assert storage.read_bytes(uri) == taken


def test_renewals_continue_after_storage_has_failed_for_a_moment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    real, failures = storage.write_bytes, list[str]()

    def away(target: str, content: bytes) -> None:
        if target == uri and len(failures) < 3:
            failures.append(target)
            raise OSError(5, "Input/output error")
        real(target, content)

    with hold(uri) as lease:
        monkeypatch.setattr(storage, "write_bytes", away)
        wait_until(lambda: len(failures) == 3)
        put(uri, token=lease.token, age=TTL_SECONDS + 1)
        wait_until(lambda: time.time() - read_lease(uri)["renewed"] < TTL_SECONDS)


GARBAGE = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[1, 2]",
    b"7",
    b'{"token": "a"}',
    b'{"token": "a", "host": "b", "pid": 1, "ren',
    b"{}",
    b'{"token": "a", "host": "b", "pid": 1, "renewed": "soon"}',
    b'{"token": "a", "host": "b", "pid": 1, "renewed": null}',
]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_not_a_lease(uri: str, content: bytes) -> None:
    storage.write_bytes(uri, content)
    with hold(uri) as lease:
        lease.check()
        storage.write_bytes(uri, content)
        with pytest.raises(ArtifactError, match=r"another run has taken over\."):
            lease.check()
    assert storage.read_bytes(uri) == content


def test_a_lease_that_was_removed_is_not_held(uri: str) -> None:
    with hold(uri) as lease:
        storage.remove(uri)
        with pytest.raises(ArtifactError, match=r"another run has taken over\."):
            lease.check()
    with pytest.raises(ArtifactError):
        lease.check()


@pytest.mark.usefixtures("real_settling_time")
def test_one_of_two_concurrent_threads_takes_over_a_lease(monkeypatch: pytest.MonkeyPatch, dead_pid: int) -> None:
    """Both read before either writes."""
    uri = "memory://test-lease/out.lease.json"
    storage.remove(uri)
    put(uri, pid=dead_pid)
    looked, decided = threading.Barrier(2), threading.Barrier(2)
    write, outcomes = storage.write_bytes, list[str]()

    def write_together(path: str, content: bytes) -> None:
        looked.wait(PATIENCE)
        write(path, content)

    def contend() -> None:
        try:
            with hold(uri) as lease:
                decided.wait(PATIENCE)
                lease.check()
                outcomes.append("held")
        except ArtifactError as error:
            decided.wait(PATIENCE)
            outcomes.append(f"refused: {error.what.partition(' (')[0]}")

    monkeypatch.setattr(storage, "write_bytes", write_together)
    threads = [threading.Thread(target=contend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused: another run has taken over"]
    assert not storage.exists(uri)


CONTEND = """
import sys
from data_pipeline.errors import ArtifactError
from data_pipeline.artifacts.lease import hold
say = lambda word: print(word, flush=True)
say("ready")
sys.stdin.readline()
try:
    with hold(sys.argv[1]) as lease:
        say("held")
        sys.stdin.readline()
        lease.check()
        say("kept")
        sys.stdin.readline()
except ArtifactError:
    say("refused")
"""


@pytest.mark.usefixtures("real_settling_time")
def test_one_of_four_concurrent_processes_holds_the_lease(tmp_path: Path) -> None:
    """A process that a loaded machine delays beyond the settling time may also enter, but the one before it has then lost."""
    uri, pipe = str(tmp_path / "out.lease.json"), subprocess.PIPE
    command = [sys.executable, "-c", CONTEND, uri]
    with ExitStack() as stack:
        rivals = [stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) for _ in range(4)]

        def ask(rival: subprocess.Popen) -> str:
            assert rival.stdout is not None
            return rival.stdout.readline().strip()

        def go(them: list[subprocess.Popen]) -> None:
            for rival in them:
                assert rival.stdin is not None
                rival.stdin.write("\n")
                rival.stdin.flush()

        assert [ask(rival) for rival in rivals] == ["ready"] * 4
        go(rivals)
        holding = [rival for rival in rivals if ask(rival) == "held"]
        assert holding
        go(holding)
        holders = [rival for rival in holding if ask(rival) == "kept"]
        assert len(holders) == 1
        assert read_lease(uri)["pid"] == holders[0].pid
        go(holders)
    assert [rival.returncode for rival in rivals] == [0] * 4
    assert not storage.exists(uri)


def test_one_of_many_creates_a_free_lease_and_all_others_are_refused_at_once(uri: str) -> None:
    start, outcomes = threading.Barrier(8), list[str]()
    refused = threading.Semaphore(0)

    def contend() -> None:
        start.wait(PATIENCE)
        try:
            with hold(uri) as lease:
                for _ in range(7):
                    assert refused.acquire(timeout=PATIENCE)
                lease.check()
                outcomes.append("held")
        except ArtifactError as error:
            outcomes.append(error.what.partition(" (")[0])
            refused.release()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["another run is writing here"] * 7 + ["held"]
    assert not storage.exists(uri)


def test_a_late_writer_fences_off_the_earlier_holder(uri: str, monkeypatch: pytest.MonkeyPatch, dead_pid: int) -> None:
    """Both are in their blocks for a while; the first learns from the token that it has lost."""
    put(uri, pid=dead_pid)
    write = storage.write_bytes
    with ExitStack() as first, ExitStack() as second:
        early = list[Lease]()

        def write_late(path: str, content: bytes) -> None:
            monkeypatch.setattr(storage, "write_bytes", write)
            early.append(first.enter_context(hold(uri)))
            write(path, content)

        monkeypatch.setattr(storage, "write_bytes", write_late)
        lease = second.enter_context(hold(uri))
        with pytest.raises(ArtifactError, match="another run has taken over"):
            early[0].check()
        first.close()
        lease.check()
    assert not storage.exists(uri)


def test_a_renewal_that_hangs_until_another_has_taken_over_leaves_one_holder(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    write, hung, taken, written = storage.write_bytes, threading.Event(), threading.Event(), threading.Event()

    def write_slowly(path: str, content: bytes) -> None:
        if threading.current_thread() is threading.main_thread() or hung.is_set():
            write(path, content)
            return
        hung.set()
        assert taken.wait(PATIENCE)
        write(path, content)
        written.set()

    monkeypatch.setattr(storage, "write_bytes", write_slowly)
    with ExitStack() as former, ExitStack() as latter:
        one = former.enter_context(hold(uri))
        assert hung.wait(PATIENCE)
        put(uri, token=one.token, age=TTL_SECONDS + 1)
        monkeypatch.setattr(leases, "RENEW_SECONDS", PATIENCE)
        other = latter.enter_context(hold(uri))
        taken.set()
        assert written.wait(PATIENCE)
        lost = 0
        for lease in (one, other):
            try:
                lease.check()
            except ArtifactError:
                lost += 1
        assert lost == 1
    assert not storage.exists(uri)


def test_the_error_that_ended_the_block_is_raised_although_storage_fails(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(uri: str) -> bytes:
        raise OSError(5, "Input/output error")

    def ended() -> None:
        with hold(uri):
            patch.setattr(storage, "read_bytes", away)
            raise CorruptError("no checkpoint is intact.", uri)

    with monkeypatch.context() as patch, pytest.raises(CorruptError, match="no checkpoint is intact"):
        ended()


def test_two_writers_with_one_process_number_do_not_share_a_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two containers on one volume have it: each numbers its processes from 1."""
    uri, drafts, real = str(tmp_path / "out.lease.json"), list[str](), os.replace

    def rival_writes_meanwhile(draft: str, target: str) -> None:
        drafts.append(draft)
        if len(drafts) == 1:
            storage.write_bytes(uri, b"the rival's")
        real(draft, target)

    monkeypatch.setattr(os, "replace", rival_writes_meanwhile)
    storage.write_bytes(uri, b"ours")
    assert Path(uri).read_bytes() == b"ours"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_jump_of_the_clock_does_not_take_the_lease_from_a_live_process(
    uri: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """As after a machine has slept."""
    monkeypatch.setattr(leases, "WATCH_SECONDS", 30.0)
    put(uri, age=3600 * hours)
    renewal = threading.Timer(0.2, put, [uri], {"age": 0.0})
    renewal.start()
    with pytest.raises(ArtifactError, match="another run is writing here"):
        hold(uri).__enter__()
    renewal.join()


def test_a_lease_that_is_removed_while_it_is_watched_is_free(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 30.0)
    put(uri, host="elsewhere", age=2 * TTL_SECONDS)
    end = threading.Timer(0.2, storage.remove, [uri])
    end.start()
    with hold(uri) as lease:
        lease.check()
    end.join()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_lease_is_held_on_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As on vfat, on SMB and under FUSE."""

    def unknown(draft: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", unknown)
    uri = str(tmp_path / "out.lease.json")
    with hold(uri) as lease:
        assert read_lease(uri)["token"] == lease.token
        assert creation.create(uri, Path(uri).read_bytes())
        assert not creation.create(uri, b"others")
        with pytest.raises(ArtifactError, match="another run is writing here"):
            hold(uri).__enter__()
        assert os.listdir(tmp_path) == ["out.lease.json"]
    assert not os.listdir(tmp_path)


def test_a_store_that_overwrites_does_not_give_a_live_lease_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old s3fs and stores that resemble S3 drop the condition of a request."""
    uri = "memory://test-lease/out.lease.json"
    real = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda fs, path, value, **_: real(fs, path, value))
    with hold(uri) as lease:
        with pytest.raises(ArtifactError, match="another run is writing here"):
            hold(uri).__enter__()
        lease.check()
    assert not storage.exists(uri)


@pytest.mark.parametrize("error", [NotImplementedError("no"), OSError(errno.ENOSYS, "A header is not implemented")])
def test_a_store_that_refuses_conditions_is_written_to_without(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    uri = "memory://test-lease/out.lease.json"
    real = MemoryFileSystem.pipe_file

    def refuse(fs: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        if mode == "create":
            raise error
        real(fs, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with hold(uri) as lease:
        lease.check()
        with pytest.raises(ArtifactError, match="another run is writing here"):
            hold(uri).__enter__()
    assert not storage.exists(uri)
