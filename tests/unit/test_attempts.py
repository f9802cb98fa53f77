"""What an attempt leaves for the next: when a run ends at once, and what its error names. In one process, without Ray."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from data_pipeline import storage
from data_pipeline.errors import ConfigError, TrainingError
from trainer.engine import attempts


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def attempt(uri: str, error: Exception | None = None, steps: int = 0) -> object:
    """An attempt that finishes some steps and then fails; the error that it found."""
    with attempts.attempt(uri) as current:
        if current.error is not None:
            return current.error
        if steps:
            current.started()
        for _ in range(steps):
            current.stepped()
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
def test_what_comes_from_outside_is_tried_again(tmp_path, error: Exception) -> None:
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
    assert "ValueError: a bad row" in attempts._last_failure(str(tmp_path))
    attempt(str(tmp_path), steps=3)
    assert "killed from outside" in attempts._last_failure(str(tmp_path))


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
    with pytest.raises(TrainingError, match=r"3 attempts in a row died before they could train, of OSError: timed out"):
        attempt(str(tmp_path))
    assert isinstance(attempt(str(tmp_path)), TrainingError)
    assert os.listdir(tmp_path)
    attempts.clear(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["log"]
