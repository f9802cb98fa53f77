"""How a run spent its time, from logs written by hand, and how `scion status` shows it."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_pipeline.artifacts import lease
from data_pipeline.errors import ArtifactError, ConfigError
from ray_jobs import status
from trainer.monitoring.goodput import account


def step(number: int, time: float, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    entry = {"kind": "step", "step": number, "time": time, "seconds": seconds, "loss": 3.0 - number / 100, "tokens": 1000}
    streams = {"el": {"loss": 2.5, "targets": 90}, "en": {"loss": 1.5, "targets": 10}}
    return entry | {"padding": 0.1, "world": 2, "streams": streams, "data_wait": 0.25, "tflops": 0.5, "mfu": 0.4} | more


def start(time: float, next_step: int = 0) -> dict[str, Any]:
    return {"kind": "start", "time": time, "next_step": next_step, "world": 2, "steps": 100}


def checkpoint(time: float, next_step: int) -> dict[str, Any]:
    return {"kind": "checkpoint", "time": time, "next_step": next_step, "seconds": 0.5, "name": "a"}


DIED = [start(0), *(step(n, 10 + n) for n in range(6)), checkpoint(14, 4)]
WENT_ON = [start(30, 4), *(step(n, 31 + n) for n in range(4, 10))]
STOPPED = {"kind": "stopped", "time": 41.0, "next_step": 10}


def test_repeated_steps_count_once() -> None:
    figures = account([[{"kind": "driver", "time": -5}], DIED, WENT_ON])
    assert figures["attempts"] == 2
    assert figures["replayed_steps"] == 2
    assert figures["seconds"] == 40.0
    assert figures["goodput"] == pytest.approx(10 / 40)
    assert figures["time_to_recover"] == 35 - 14


def test_a_pause_on_purpose_is_not_charged() -> None:
    later = [start(1000, 10), step(10, 1001), step(11, 1002)]
    figures = account([DIED, [*WENT_ON, STOPPED], [{"kind": "driver", "time": 990.0}], later])
    assert figures["idle"] == pytest.approx(990 - 41)
    assert figures["seconds"] == pytest.approx(1002 - figures["idle"])
    assert figures["goodput"] == pytest.approx(12 / figures["seconds"], abs=1e-4)
    assert account([])["goodput"] is None


def test_the_night_between_a_kill_and_the_next_command_is_not_charged() -> None:
    morning = [{"kind": "driver", "time": 30_000.0}]
    later = [start(30_020, 4), *(step(n, 30_020 + n) for n in range(4, 10))]
    figures = account([DIED, morning, later])
    assert figures["idle"] == 30_000 - 14
    assert figures["seconds"] == 30_029 - figures["idle"]
    assert figures["time_to_recover"] == 24
    assert "8.3 h without a running command" in shown([DIED, morning, later], 30_030)
    assert "no command" not in shown([DIED, WENT_ON], 41)


@pytest.mark.parametrize("word", [False, True])
def test_a_clock_that_leaps_back_makes_no_time_negative(word: bool) -> None:
    """It gave -3541 seconds and a recovery of -3565 s."""
    late = [{"kind": "driver", "time": 28.0 - 3600}] if word else []
    leapt = [start(30 - 3600, 4), *(step(n, 31 + n - 3600) for n in range(4, 10))]
    counted = account([DIED, *([late] if late else []), leapt])
    assert counted["seconds"] == 14 + 10
    assert counted["goodput"] == pytest.approx(10 / 24, abs=1e-4)
    assert counted["time_to_recover"] == (7 if word else None)
    assert counted["idle"] == 0
    assert account([[start(100), step(0, 101), step(1, 51)]])["seconds"] == 0


def shown(attempts: list[list[dict[str, Any]]], now: float) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(status.table(attempts, now))
    return console.file.getvalue()


def test_the_table_shows_the_log() -> None:
    evaluation = {
        "kind": "evaluation",
        "time": 13,
        "step": 4,
        "bits_per_byte": 1.25,
        "by_language": {"el": 1.3, "en": 1.1},
        "row_norms": {"inherited": 1.0, "new": 0.8},
    }
    back = {"kind": "back", "time": 37, "step": 9, "next_step": 4, "first": 4, "last": 10, "why": "the loss rose"}
    text = shown([[*DIED, evaluation], [*WENT_ON, back]], 42)
    for part in (
        "running",
        "10 of 100",
        "1,000 in all, 500 a worker",
        "0.5 useful TFLOP/s a worker, 40.0% of the peak",
        "data wait 25%",
        "10.0%",
        "el 2.500, en 1.500",
        "1.2500 at step 4 (el 1.300, en 1.100)",
        "inherited 1.000, new 0.800",
        "to step 4: the loss rose",
        "2, 2 steps repeated",
    ):
        assert part in text, part
    pairs = {
        "kind": "evaluation",
        "time": 13,
        "step": 4,
        "pairs": 300,
        "by_language": {},
        "retrieval": {way: {"accuracy_at_1": 0.5, "mrr_at_10": 0.7} for way in ("forward", "backward")},
    }
    assert "accuracy@1 0.500 / 0.500 on 300 test pairs at step 4" in shown([[*DIED, pairs]], 20)
    assert "silent for 200 s" in shown([WENT_ON], 240)
    assert status.state([WENT_ON], 240, driven=False) == "interrupted; the same command resumes it"
    assert status.state([WENT_ON], 50, driven=False) == "running"  # a moment after its end nobody knows
    assert "stopped" in shown([[*WENT_ON, STOPPED]], 10_000)
    assert "starting" in shown([[{"kind": "driver", "time": 1.0}]], 2)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no training has run here"):
        status.command([str(tmp_path)], Console())
    with pytest.raises(ConfigError, match="Usage: scion status RUN"):
        status.command([], Console())
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "00000000000000000001-000000.jsonl").write_text(json.dumps(start(0)) + "\n")
    console = Console(file=io.StringIO())
    status.command([str(tmp_path)], console)
    assert "0 of 100" in console.file.getvalue()


def test_the_lease_of_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    """`scion status` said "silent for 7195 s" of a dead run for ever."""
    dead_process = subprocess.Popen(["true"])
    dead_process.wait()
    with lease.hold(f"{tmp_path}/run.lease.json"):
        assert status.is_driven(f"{tmp_path}/run")
        left = json.loads((tmp_path / "run.lease.json").read_text())
    (tmp_path / "run.lease.json").write_text(json.dumps(left | {"pid": dead_process.pid}))
    assert not status.is_driven(f"{tmp_path}/run")
