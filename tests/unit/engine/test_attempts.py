"""Notes of an attempt for the next: when a run ends at once, and what its error names. In one process, without Ray."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.lease import Lease, hold
from data_pipeline.errors import ArtifactError, ConfigError, TrainingError
from trainer.engine import attempts
from trainer.engine.attempts import Attempt
from trainer.monitoring import run_log
from trainer.monitoring.run_log import RunLog


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def attempt(uri: str, error: Exception | None = None, steps: int = 0, lease: Lease | None = None) -> object:
    """An attempt that finishes some steps and then fails; the error that it found."""
    with attempts.attempt(uri, lease) as current:
        if current.error is not None:
            return current.error
        if steps:
            current.note_start()
        for _ in range(steps):
            current.note_step()
        if error is not None:
            raise error
    return None


def test_an_exception_before_the_first_step_is_the_last(tmp_path) -> None:
    attempts.begin(str(tmp_path))
    with pytest.raises(ValueError, match="8 and 64"):
        attempt(str(tmp_path), ValueError("8 and 64"))
    ended = attempt(str(tmp_path))
    assert isinstance(ended, TrainingError)
    assert "before its first step was done: ValueError: 8 and 64 (rank 0, " in str(ended)
    assert "test_attempts.py" in str(ended)


@pytest.mark.parametrize(
    "error", [OSError("timed out"), dist.DistNetworkError("peer"), RuntimeError("x/gloo/transport/tcp: closed")]
)
def test_exceptions_from_outside_are_retried(tmp_path, error: Exception) -> None:
    attempts.begin(str(tmp_path))
    with pytest.raises(type(error)):
        attempt(str(tmp_path), error)
    assert attempt(str(tmp_path)) is None


def test_a_run_that_has_trained_is_tried_again_after_any_exception(tmp_path) -> None:
    """A worker that was killed may hold a GPU's memory for a while: the next attempt then fails before its own first step."""
    attempts.begin(str(tmp_path))
    with pytest.raises(ValueError, match="step 9"):
        attempt(str(tmp_path), ValueError("step 9"), steps=9)
    with pytest.raises(torch.OutOfMemoryError):
        attempt(str(tmp_path), torch.OutOfMemoryError("CUDA out of memory"))
    assert attempt(str(tmp_path), steps=1) is None
    attempts.begin(str(tmp_path))  # and so does the next driver
    with pytest.raises(ValueError, match="again"):
        attempt(str(tmp_path), ValueError("again"))
    assert attempt(str(tmp_path)) is None


def test_an_exception_that_was_overcome_is_not_named_later(tmp_path) -> None:
    attempts.begin(str(tmp_path))
    with pytest.raises(ValueError, match="a bad row"):
        attempt(str(tmp_path), ValueError("a bad row"), steps=5)
    assert "ValueError: a bad row" in attempts.last_failure(Attempt(str(tmp_path), None))
    attempt(str(tmp_path), steps=3)
    assert "killed from outside" in attempts.last_failure(Attempt(str(tmp_path), None))


def test_storage_that_fails_does_not_hide_the_exception(tmp_path, monkeypatch) -> None:
    attempts.begin(str(tmp_path))

    def full(uri: str, content: bytes) -> None:
        raise OSError("No space left on device")

    def fail(error: Exception) -> None:
        with attempts.attempt(str(tmp_path)):
            monkeypatch.setattr(storage, "write_bytes", full)
            raise error

    for error in (ValueError("the reason"), ConfigError("the reason")):
        monkeypatch.undo()
        attempts.begin(str(tmp_path))
        with pytest.raises(type(error), match="the reason"):
            fail(error)


def test_three_attempts_that_die_before_they_train_are_enough(tmp_path) -> None:
    attempts.begin(str(tmp_path))
    for _ in range(3):
        with pytest.raises(OSError, match="timed out"):
            attempt(str(tmp_path), OSError("timed out"))
    with pytest.raises(TrainingError, match=r"3 attempts in a row died before they trained, of OSError: timed out"):
        attempt(str(tmp_path))
    assert isinstance(attempt(str(tmp_path)), TrainingError)
    assert os.listdir(tmp_path)
    attempts.clear(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["log"]


def overtaken(uri: str, mine: Lease, old: Lease, error: Exception) -> None:
    with attempts.attempt(uri, mine) as current:
        current.lease = old
        raise error


def test_a_superseded_run_leaves_nothing_to_its_successor(tmp_path) -> None:
    """Its driver is alive but was taken for dead: it finds out at a commit, or at the start of another attempt."""
    uri = str(tmp_path)
    with hold(f"{uri}/lease") as mine:
        old = Lease(mine.uri, "old")
        attempts.begin(uri)
        before = sorted(tmp_path.rglob("*"))
        for error in (ArtifactError("another run has taken over."), ValueError("bad"), OSError("timed out")):
            with pytest.raises(type(error)):
                overtaken(uri, mine, old, error)
            storage.remove(f"{uri}/attempts/{mine.token}")
        assert "taken over" in str(attempt(uri, steps=3, lease=old))
        assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "attempts"] == before
        assert attempt(uri, steps=3, lease=mine) is None


def test_late_notes_of_a_superseded_run_are_ignored(tmp_path, monkeypatch) -> None:
    uri = str(tmp_path)
    with hold(f"{uri}/lease") as mine:
        monkeypatch.setattr(Attempt, "superseded_error", lambda self: None)  # it looked just before it was taken over
        for _ in range(4):
            with pytest.raises((ArtifactError, TrainingError)):
                raise attempt(uri, ArtifactError("another run has taken over."), lease=Lease(mine.uri, "old"))  # type: ignore[misc]
        monkeypatch.undo()
        assert attempt(uri, steps=3, lease=mine) is None
        with pytest.raises(ConfigError):
            attempt(uri, ConfigError("mine"), lease=mine)
        assert isinstance(attempt(uri, lease=mine), ConfigError)


def test_attempts_that_die_at_the_end_blame_no_rows(tmp_path) -> None:
    for _ in range(3):
        log = RunLog(str(tmp_path / run_log.FOLDER))
        log.write("start", next_step=8)
        log.sync()
    with pytest.raises(OSError, match="No space"):
        attempt(str(tmp_path), OSError("No space left on device"))
    with pytest.raises(TrainingError, match=r"3 attempts .* the trained model .* written, of OSError: No space") as it:
        attempts.check_progress(Attempt(str(tmp_path), None), None, 8, 8)  # type: ignore[arg-type]
    assert "rows" not in str(it.value)
    assert "after all 8 steps" in str(it.value)
