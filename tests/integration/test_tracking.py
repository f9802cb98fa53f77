"""A stopped run resumes in the same run of W&B and MLflow, and logs no step twice."""

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest

from data_pipeline.errors import Stopped
from tests.integration.test_elastic import StopAt
from tests.integration.test_engine import ordered_rows
from tests.ranks import train_run
from tests.unit.monitoring.test_trackers import history
from trainer.config.train import TrainConfig
from trainer.engine.launch import fit
from trainer.models.packed_lm import PackedLM
from trainer.monitoring import run_log
from trainer.tasks.language_modeling import LanguageModelTask

pytestmark = pytest.mark.usefixtures("ray_session")
STEPS = 12


def offline(folder: str) -> dict[str, str]:
    store = {"MLFLOW_TRACKING_URI": f"file://{folder}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    return {"WANDB_MODE": "offline", **store}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTask(LanguageModelTask):
    """A task that sets the variables of `offline` on its worker."""

    folder: str

    def module(self, *arguments: Any, **settings: Any) -> PackedLM:
        os.environ.update(offline(self.folder))
        return LanguageModelTask.module(self, *arguments, **settings)


@pytest.mark.slow
def test_a_stopped_run_resumes_in_the_same_tracked_runs(shards, source_folder: str, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder = str(tmp_path / "run")
    task = OfflineTask(model_uri=source_folder, length=32, probability=0.15, seed=1, folder=folder)
    config = TrainConfig(steps=STEPS, batch_size=4, checkpoint_steps=50, track=("tensorboard", "wandb", "mlflow"))
    run = train_run(task, config, ordered_rows(shards, 4, None), folder, progress=StopAt.remote(4))
    with pytest.raises(Stopped):
        fit(run, workers=1, worker_cpus=1, gpu=False)
    fit(replace(run, progress=None), workers=1, worker_cpus=1, gpu=False)
    losses = {entry["step"]: entry["loss"] for entry in run_log.steps(run_log.read(f"{folder}/log"))}
    assert list(losses) == list(range(STEPS))

    paths = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 2
    assert len({path.name for path in paths}) == 1
    assert [(step, row["loss"]) for path in paths for step, row in history(path)] == list(losses.items())

    for name, value in offline(folder).items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("scion")
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(mlflow_run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in points) == list(losses.items())
    assert mlflow_run.info.status == "FINISHED"
