"""Where compiled ops are looked for when the environment's own folder cannot be written."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.deepspeed_bridge import environment


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a compiled op and a lock of another process, into which nobody may write."""
    folder = tmp_path / "prefix" / "torch_extensions"
    (folder / "op").mkdir(parents=True)
    (folder / "op" / "op.so").write_bytes(b"code")
    (folder / "op" / "lock").touch()
    os.utime(folder / "op" / "op.so", (1e9, 1e9))
    real = os.access  # root may write anywhere, whatever the mode says
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).startswith(str(tmp_path / "prefix")) and real(path, mode)
    )
    return folder


def test_a_folder_that_can_be_written_is_used(tmp_path: Path) -> None:
    assert environment.writable_folder(str(tmp_path / "new"), str(tmp_path / "cache")) == str(tmp_path / "new")
    assert not (tmp_path / "cache").exists()


def test_a_copy_keeps_times_and_no_lock(compiled: Path, tmp_path: Path) -> None:
    """A newer or missing time would compile the op again, and a copied lock would be waited for without end."""
    cache = tmp_path / "home" / ".cache" / "scion" / "torch_extensions"
    assert environment.writable_folder(str(compiled), str(cache)) == str(cache)
    assert [file.name for file in (cache / "op").iterdir()] == ["op.so"]
    assert (cache / "op" / "op.so").stat().st_mtime == 1e9


def test_processes_of_a_node_make_one_copy(compiled: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "torch_extensions"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: environment.writable_folder(str(compiled), str(cache)), range(16)))
    assert found == {str(cache)}
    assert [file.name for file in cache.parent.iterdir()] == ["torch_extensions"]


def test_the_choice_of_the_user_stays() -> None:
    code = (
        "import os; os.environ['TORCH_EXTENSIONS_DIR'] = '/mine'\n"
        "from trainer.deepspeed_bridge.environment import prepare_environment\nprepare_environment()\n"
        "print(os.environ['TORCH_EXTENSIONS_DIR'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout == "/mine\n"
