"""Cached training that stops, dies or gets other workers: what `test_elastic` says of pretraining holds for it."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.artifacts import storage
from data_pipeline.errors import Stopped
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.pairs import shards
from ray_jobs.training import order_rows
from tests.integration.conftest import pair_shards
from tests.ranks import fit, train_run
from trainer.config.train import TrainConfig
from trainer.embedder_spec import EmbedderSpec
from trainer.engine.train_run import TrainRun
from trainer.ledger import audit, ledger
from trainer.monitoring import run_log
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.nested import Nested, NestedConfig
from trainer.objectives.objective import Needs, Objective
from trainer.tasks.contrastive import ContrastiveTask

STEPS, BATCH, TOKENS = 8, 7, 24
"""Rows that no number of workers divides, in chunks of one or two texts."""


@dataclass(frozen=True, kw_only=True)
class Deadly:
    """An objective that kills its process once, in the losses of a batch."""

    inner: Objective
    flag: str
    """A file that exists from the death on."""
    after: int
    """Calls before it."""

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def __call__(self, reps: Any, batch: Any) -> torch.Tensor:
        calls = Path(f"{self.flag}-{os.getpid()}")
        calls.write_bytes((calls.read_bytes() if calls.exists() else b"") + b".")
        if calls.stat().st_size > self.after and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(reps, batch)


def objective() -> Objective:
    """Losses of two depths and two widths, which need the anchors of all ranks."""
    inner = InfoNce(progressive=True, margin=0.5, focal=0.5)
    return Nested(inner=inner, config=NestedConfig(widths=(8,), exits=(1,)))


@pytest.fixture
def rows(source_folder: str, tmp_path: Path, pairs: list[dict[str, str]]) -> OrderedRows:
    folder = str(tmp_path / "pairs")
    manifest = pair_shards(pairs[:40], source_folder, folder)
    return order_rows(TrainConfig(steps=STEPS, batch_size=BATCH), folder, manifest, {shards.STREAM: 1.0}, seed=3)


def train(
    rows: OrderedRows, model: str, folder: str, workers: int, stage: int, stop: int | None = None, **task: Any
) -> TrainRun:
    settings = {"objective": objective()} | task
    contrastive = ContrastiveTask(model_uri=model, spec=EmbedderSpec(max_length=16), chunk_tokens=TOKENS, **settings)
    config = TrainConfig(
        steps=STEPS,
        batch_size=BATCH,
        zero_stage=stage,
        checkpoint_steps=2,
        learning_rate=1e-3,
        max_failures=2,  # type: ignore[arg-type]
    )
    run = train_run(contrastive, config, rows, folder)
    fit(run, workers=workers, stop=stop)
    return run


def losses(run: TrainRun) -> list[float]:
    return [step["loss"] for step in run_log.steps(run_log.read(f"{run.uri}/log"))]


def weights(run: TrainRun) -> bytes:
    return storage.read_bytes(f"{run.export_uri}/model.safetensors")


def consumed(run: TrainRun) -> list[dict[str, Any]]:
    uri = f"{run.uri}/{ledger.FOLDER}"
    assert all(finding.is_ok for finding in audit.audit(uri, run.rows, audit.read_history(uri)))
    return [row for name in audit.read_history(uri).lineage for row in ledger.read(uri, name).to_pylist()]


STAGES = [
    pytest.param(1, "cached", marks=pytest.mark.slow),
    (2, "cached_per_chunk"),
    pytest.param(3, "cached", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stage", "passes"), STAGES)
def test_a_stopped_and_a_killed_run_end_with_the_weights_of_one_that_ran_through(
    rows: OrderedRows, source_folder: str, tmp_path: Path, stage: int, passes: str
) -> None:
    whole = train(rows, source_folder, str(tmp_path / "whole"), 2, stage, passes=passes)
    with pytest.raises(Stopped):
        train(rows, source_folder, str(tmp_path / "parted"), 2, stage, stop=3, passes=passes)
    resumed = train(rows, source_folder, str(tmp_path / "parted"), 2, stage, passes=passes)
    deadly = Deadly(inner=objective(), flag=str(tmp_path / "died"), after=4)
    killed = train(rows, source_folder, str(tmp_path / "killed"), 2, stage, passes=passes, objective=deadly)
    assert (tmp_path / "died").exists()
    for run in (resumed, killed):
        assert losses(run) == losses(whole)
        assert weights(run) == weights(whole)
        assert consumed(run) == consumed(whole)


@pytest.mark.parametrize(("stage", "passes"), STAGES)
def test_the_number_of_workers_may_change_twice(
    rows: OrderedRows, source_folder: str, tmp_path: Path, stage: int, passes: str
) -> None:
    """From 2 to 1 to 2: the same rows; losses differ by rounding, and by dropout, which the model here has not."""
    whole = train(rows, source_folder, str(tmp_path / "whole"), 2, stage, passes=passes)
    folder = str(tmp_path / "parted")
    for workers, stop in ((2, 3), (1, 6)):
        with pytest.raises(Stopped):
            train(rows, source_folder, folder, workers, stage, stop=stop, passes=passes)
    run = train(rows, source_folder, folder, 2, stage, passes=passes)
    starts = [entry for entries in run_log.read(f"{run.uri}/log") for entry in entries if entry["kind"] == "start"]
    assert [entry["world"] for entry in starts] == [2, 1, 2]
    assert np.abs(np.subtract(losses(run), losses(whole))).max() < 1e-5
    assert consumed(run) == consumed(whole)
