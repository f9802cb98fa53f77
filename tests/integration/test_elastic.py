"""A run that resumes with another number of workers has the same rows and the same losses."""

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from data_pipeline.errors import Stopped
from tests.integration.test_engine import ordered_rows
from tests.ranks import fit, train_run
from trainer.config.train import TrainConfig
from trainer.engine.requests import Request, Requests
from trainer.engine.train_run import TrainRun
from trainer.ledger import audit, ledger
from trainer.monitoring import run_log
from trainer.tasks.language_modeling import LanguageModelTask

STEPS, BATCH = 12, 7
"""Rows that neither 2 nor 3 workers divide."""


@ray.remote(num_cpus=0)
class StopAt:
    """Replaces the driver's board: asks to stop from a step on."""

    def __init__(self, step: int) -> None:
        self._step = step

    def update(self, done: int, total: int, text: str) -> bool:
        return done >= self._step


def train(shards: Any, source_folder: str, folder: str, stage: int, workers: int, stop: int | None = None) -> TrainRun:
    """Trains to the end, or until the driver asks to stop."""
    config = TrainConfig(steps=STEPS, batch_size=BATCH, micro_batch=2, zero_stage=stage, checkpoint_steps=50)
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    run = train_run(task, config, ordered_rows(shards, BATCH, 2), folder)
    fit(run, workers=workers, stop=stop)
    return run


def consumed(run: TrainRun) -> list[dict[str, Any]]:
    uri = f"{run.uri}/{ledger.FOLDER}"
    return [row for name in audit.read_history(uri).lineage for row in ledger.read(uri, name).to_pylist()]


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [pytest.param(1, 2, 1, marks=pytest.mark.slow), (2, 1, 3), pytest.param(3, 3, 2, marks=pytest.mark.slow)],
)
def test_the_number_of_workers_may_change(shards, source_folder: str, tmp_path, stage: int, before: int, after: int) -> None:  # type: ignore[no-untyped-def]
    whole = train(shards, source_folder, str(tmp_path / "whole"), stage, before)
    with pytest.raises(Stopped, match="the same command resumes"):
        train(shards, source_folder, str(tmp_path / "parted"), stage, before, stop=4)
    run = train(shards, source_folder, str(tmp_path / "parted"), stage, after)
    attempts = run_log.read(f"{run.uri}/log")
    starts = [entry for entries in attempts for entry in entries if entry["kind"] == "start"]
    assert [entry["world"] for entry in starts] == [before, after]
    assert 4 <= starts[1]["next_step"] < STEPS
    losses = [[step["loss"] for step in run_log.steps(run_log.read(f"{path.uri}/log"))] for path in (whole, run)]
    assert np.abs(np.subtract(*losses)).max() < 1e-5
    assert consumed(run) == consumed(whole)
    assert all(finding.is_ok for finding in audit.audit(f"{run.uri}/ledger", run.rows, audit.read_history(f"{run.uri}/ledger")))


@pytest.mark.usefixtures("ray_session")
def test_a_run_continues_without_the_driver_s_board() -> None:
    board = StopAt.remote(3)
    calls = Calls(board)
    requests = Requests(TrainConfig(), calls)
    requests.report(4, 1.0)
    assert stop_request(requests, calls) == Request.STOP
    requests.report(1, 1.0)
    assert stop_request(requests, calls) == 0
    ray.kill(board)
    with contextlib.suppress(ray.exceptions.RayActorError):  # the call follows the kill; an answer may have arrived before it
        ray.get(board.update.remote(1, 2, ""))
    requests.report(4, 1.0)
    assert stop_request(requests, calls) == 0
    requests.report(5, 1.0)
    assert requests.due() & Request.STOP == 0
    assert len(calls.answers) == 3  # the board that is gone is not asked again


class Calls:
    """A board whose calls are recorded, with the references to their answers."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self.update = SimpleNamespace(remote=self._update)
        self.answers: list[Any] = []

    def _update(self, *arguments: Any) -> Any:
        self.answers.append(self._board.update.remote(*arguments))
        return self.answers[-1]


def stop_request(requests: Requests, calls: Calls) -> int:
    """Waits for the board's last answer; STOP if the requests then hold it."""
    ready, _ = ray.wait(calls.answers[-1:], timeout=30)
    assert ready
    return requests.due() & Request.STOP
