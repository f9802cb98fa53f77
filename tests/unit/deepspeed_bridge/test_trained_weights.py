"""Trained weights are written to files; a disk that fills is an error, not a signal."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.deepspeed_bridge import trained_weights

CODE = """
import sys, torch
from trainer.deepspeed_bridge.trained_weights import mapped_copy

value = torch.arange(300_000.0)
assert torch.equal(mapped_copy(value, torch.bfloat16, f"{sys.argv[1]}/0"), value.bfloat16())
try:
    mapped_copy(value, torch.float32, f"{sys.argv[1]}/1")
except OSError as error:
    print(error)
"""


def on_small_disk(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command for which `folder` is a file system of 1 MiB."""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@"'
    whole = ["unshare", "-rm", "sh", "-c", mount, "sh", str(folder), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


@functools.cache
def may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="needs user namespaces")
def test_a_disk_that_fills_is_an_error_that_names_it(tmp_path: Path) -> None:
    done = on_small_disk(tmp_path, sys.executable, "-c", CODE, str(tmp_path))
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.strip() == f"[Errno 28] No space left on device: '{tmp_path}/1'"


def test_files_of_a_killed_attempt_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".rank-export-91seicpu").mkdir()
    (tmp_path / ".rank-export-91seicpu" / "0").write_bytes(bytes(100))
    (tmp_path / ".rank-00000-a").mkdir()  # another rank's part of a checkpoint
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    trained_weights.remove_leftovers(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".rank-00000-a"]
