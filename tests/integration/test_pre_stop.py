"""The preStop hook of Ray pods: what it ends and what it waits for."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.kuberay import pre_stop

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(700)
@pytest.mark.parametrize("tests", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_hook_on_raylets(tests: str) -> None:
    """In a process of its own: the other tests share a Ray session."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled"}  # whatever an earlier Ray has left in the home folder
    file = "tests/integration/pre_stop_on_raylets.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "-m", tests, file]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=690, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@contextmanager
def driver(folder: Path, on_sigterm: str) -> Iterator[subprocess.Popen]:
    """A program with the command line of a driver, in a package `ray_jobs` of its own."""
    (folder / "ray_jobs").mkdir()
    (folder / "ray_jobs" / "__init__.py").write_text("")
    (folder / "ray_jobs" / "slow.py").write_text(
        f"import pathlib, signal, time\ndef stop(*_):\n    {on_sigterm}\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('ready').touch()\nwhile True: time.sleep(0.1)\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "ray_jobs.slow", "run.yaml"], cwd=folder)
    try:
        until((folder / "ready").exists, 30)
        yield process
    finally:
        process.kill()


def test_a_driver_gets_sigterm_and_is_waited_for(tmp_path: Path) -> None:
    """It takes a moment to end, as one that saves does."""
    with driver(tmp_path, "time.sleep(2); pathlib.Path('saved').touch(); raise SystemExit(75)") as process:
        assert pre_stop.main(["60"], lambda: [psutil.Process(process.pid)] if process.poll() is None else []) == 0
        assert (tmp_path / "saved").exists()
        assert process.wait(5) == 75


def test_the_hook_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with driver(tmp_path, "pass") as process:
        began = time.monotonic()
        assert pre_stop.main(["2"], lambda: [psutil.Process(process.pid)]) == 0
        assert 2 <= time.monotonic() - began < 10
        assert process.poll() is None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/usr/bin/python", "-m", "ray_jobs.pretrain", "run.yaml"], True),
        (["python3.11", "/app/.venv/bin/scion", "pipeline", "run.yaml"], True),
        (["/bin/sh", "-c", "python -m ray_jobs.pretrain run.yaml"], False),
        (["python", "-m", "cluster.kuberay.pre_stop", "240"], False),
        (["python", "-m"], False),
        (["python"], False),
        ([], False),
        (["ray::RayTrainWorker", "", ""], False),
    ],
)
def test_what_a_driver_is(command: list[str], expected: bool) -> None:
    assert pre_stop.is_driver(command) is expected


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
