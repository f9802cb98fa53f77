"""How the command starts: nothing heavy is imported before the configuration is right."""

import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs import cli
from ray_jobs.job import jobs

ROOT = Path(__file__).parents[3]
DEMO = "ray_jobs/conf/demo.yaml"
HEAVY = ("torch", "transformers", "ray", "scipy", "datasets", "deepspeed", "pyarrow", "huggingface_hub")
"""Each takes 0.1 s (pyarrow) to several seconds (ray, transformers) to import."""


def run_and_list_imports(*arguments: str) -> tuple[list[str], int, str]:
    """The heavy packages that a command has imported when it ends, its exit code, and what it printed."""
    code = (
        "import sys\nfrom ray_jobs.cli import main\ncode = main(sys.argv[1:])\n"
        f"print('HEAVY', code, *[name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    *printed, last = process.stdout.splitlines()
    _, exit_code, *heavy = last.split()
    return heavy, int(exit_code), "\n".join(printed) + process.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--help"], 0, "usage: scion JOB"),
        (["methods"], 0, "focus"),
        (["pipelin", DEMO], 2, "Did you mean 'pipeline'?"),
        (["pipeline", DEMO, "nonsense=1"], 2, "nonsense"),
        (["pipeline", DEMO, "method=nonsense"], 2, "nonsense is not a method"),
        (["embed", DEMO, "embed.pooling=least"], 2, "pooling 'least'"),
        (["pipeline", DEMO, "output=nofs://bucket"], 2, "output=nofs://bucket"),
    ],
)
def test_a_mistake_is_found_before_anything_heavy_is_imported(arguments: list[str], exit_code: int, message: str) -> None:
    heavy, got, printed = run_and_list_imports(*arguments)
    assert (got, heavy) == (exit_code, [])
    assert message in printed


def test_a_right_configuration_needs_nothing_heavy() -> None:
    code = (
        f"import sys, ray_jobs.config.load as c\nc.load({DEMO!r}, [])\nprint([name for name in {HEAVY} if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert process.stdout == "[]\n"


@pytest.mark.parametrize("job", ["shard", "report"])
def test_a_job_runs_as_a_module(job: str) -> None:
    """As `ray job submit` runs it; `report` is a package."""
    command = [sys.executable, "-m", f"ray_jobs.{job}", DEMO, "nonsense=1"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, "there is no such key" in process.stderr) == (2, True)


def test_every_job_can_run_as_a_module() -> None:
    for job in set(jobs()) - {"report"}:
        assert "run_module(__file__)" in (ROOT / "ray_jobs" / f"{job}.py").read_text()


def test_ray_is_quiet_however_a_job_is_started() -> None:
    """Ray reads these when it is imported, which `python -m ray_jobs.JOB` does at once."""
    code = "import ray_jobs, os, sys; print('ray' in sys.modules, os.environ['RAY_DATA_LOGGING_CONFIG'])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert process.stdout == f"False {ROOT / 'cluster' / 'ray_data_logging.yaml'}\n"


@pytest.mark.parametrize("error", [TimeoutError("no answer in 330 s"), OSError(28, "No space left on device")])
def test_storage_that_fails_is_a_line_and_no_traceback(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main(["shard", DEMO]) == 1
    message = capsys.readouterr().err
    assert "the disk or the storage failed" in message
    assert str(error) in message
    assert "Traceback" not in message
