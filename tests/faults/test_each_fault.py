"""Each fault by itself (specs/infra.md 4.3, one row one test). Slow: `make faults`, not `make test`."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.__main__ import Schedule, references, run_schedule
from tests.faults.check import Leftovers, violations
from tests.faults.inject import FAULTS, limit_file_size
from tests.faults.inputs import make_inputs
from tests.faults.rig import ROOT, Rig, Run, copy_inputs, rig

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("faults") / "source")


@pytest.fixture(scope="module")
def reference(source: Path) -> Path:
    return references(source, source.parent, {1})[1]


@pytest.fixture(scope="module")
def nodes(reference: Path) -> Iterator[Rig]:
    with rig() as new_rig:
        yield new_rig


@pytest.fixture
def run(nodes: Rig, source: Path, tmp_path: Path) -> Iterator[Run]:
    """A run that the test disturbs itself."""
    run = Run(nodes, copy_inputs(source, tmp_path / "run"), ("pretrain.train.zero_stage=1",))
    yield run
    run.stop()


@pytest.mark.parametrize(
    ("name", "elastic"), [*((name, False) for name in sorted(FAULTS)), ("lose_node", True), ("drain_node", True)]
)
def test_a_disturbed_run_ends_like_an_undisturbed_one(
    nodes: Rig, source: Path, reference: Path, tmp_path: Path, name: str, elastic: bool
) -> None:
    schedule, before = Schedule(5, 1, elastic, ((30, name),)), Leftovers.now()
    run = run_schedule(nodes, source, tmp_path / "run", schedule)
    assert violations(run, reference, before, [name], elastic) == []
    if name in ("drain_node", "stop_driver"):
        starts = run.entries("start")
        last_step = max(entry["step"] for entry in run.log()[1] if entry["kind"] == "step")
        assert starts[1]["next_step"] > 30
        assert last_step + 1 - starts[1]["next_step"] <= (20 if name == "drain_node" else 0), (
            "more was lost than since the notice"
        )


def test_a_second_driver_is_refused_while_the_first_runs(run: Run) -> None:
    run.start()
    run.wait(lambda: run.step() >= 3, "step 3")
    other = run.driver()
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 2
    assert f"another run is writing here ({os.uname().nodename}, process {run.process.pid}" in errors
    assert run.wait_for_exit() == 0


def test_a_disk_that_stays_full_ends_the_run_with_the_last_good_checkpoint_intact(run: Run) -> None:
    run.start()
    run.wait(lambda: run.step() >= 8, "step 8")
    limit_file_size(run)
    assert run.wait_for_exit() == 1
    assert "3 checkpoints in a row could not be saved" in run.stderr
    assert "Make room there" in run.stderr
    newest = run.store.usable()[0]
    run.store.verify(newest)
    assert not [name for name in os.listdir(run.store.uri) if name.startswith(".rank-")]
    run.start()
    assert run.wait_for_exit() == 0


def test_a_flipped_byte_in_a_shard_ends_the_run_and_names_the_shard(run: Run) -> None:
    shard = next(Path(run.folder, "run", "shards", "rows").rglob("*.parquet"))
    whole = shard.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 4
    shard.write_bytes(damaged)
    run.start()
    assert run.wait_for_exit() == 1
    assert shard.name in run.stderr
    assert "Traceback" not in run.stderr
    shard.write_bytes(whole)
    run.start()
    assert run.wait_for_exit() == 0


def test_other_data_under_an_unfinished_run_is_refused(run: Run) -> None:
    run.start()
    run.wait(lambda: run.step() >= 8, "step 8")
    FAULTS["stop_driver"](run, random.Random(0))
    run.process.kill()
    run.wait_for_exit()
    before = sorted(run.store.usable())
    for change in ("seed=3", "pretrain.train.batch_size=14", "shard.length=32"):
        other = run.driver(change)
        _, errors = other.communicate(timeout=120)
        assert other.returncode == 2, errors
        assert "differs in" in errors
    assert sorted(run.store.usable()) == before


@pytest.mark.parametrize("output", ["/proc/nowhere/run", "nowhere://bucket/run"])
def test_missing_storage_is_reported_at_once(run: Run, output: str) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "ray_jobs.cli", "shard", str(run.folder / "tiny.yaml"), f"output={output}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 2, process.stderr
    assert output in process.stderr
    assert "Traceback" not in process.stderr
    assert time.monotonic() - began < 60
