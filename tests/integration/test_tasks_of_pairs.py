"""Steps of one task: the same for any number of workers and after an interruption, and a loss for each task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.artifacts import storage
from data_pipeline.errors import Stopped
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.pairs import shards
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs.training import order_rows, shares
from tests.ranks import fit, train_run
from tests.unit.shards.test_sample import in_this_process
from trainer.config.train import TrainConfig
from trainer.embedder import EmbedderSpec
from trainer.engine.train_run import TrainRun
from trainer.ledger import audit, ledger
from trainer.monitoring import run_log
from trainer.tasks.contrastive import ContrastiveTask

STEPS, BATCH = 12, 7


@pytest.fixture
def task_rows(source_folder: str, tmp_path: Path, pairs: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> OrderedRows:
    """60 pairs without a task and 15 of a small one, so that steps are two to one."""
    monkeypatch.setattr(shards, "ray_map", in_this_process)
    anchors, positives = ([row[side] for row in pairs[:75]] for side in ("anchor", "positive"))
    tasks = ["small/one" if number % 5 == 0 else "" for number in range(75)]
    columns = Pairs(ids=anchors, anchors=anchors, positives=positives, negatives=[[] for _ in anchors], tasks=tasks)
    folder = f"{tmp_path}/pairs"
    manifest = shards.build(columns, source_folder, folder, max_length=16, actors=1, progress=lambda *_: None)
    sizes = {name: sum(shard.rows for shard in parts) for name, parts in manifest.streams.items()}
    assert sizes == {"pairs": 60, "small/one": 15}
    config = TrainConfig(steps=STEPS, batch_size=BATCH)
    return order_rows(config, folder, manifest, shares(sizes, {}, 0.5, "embed"), 3, of_tasks="one_task")


def train(rows: OrderedRows, model: str, folder: str, workers: int, stop: int | None = None) -> TrainRun:
    task = ContrastiveTask(model_uri=model, spec=EmbedderSpec(max_length=16))
    run = train_run(task, TrainConfig(steps=STEPS, batch_size=BATCH, checkpoint_steps=50), rows, folder)
    fit(run, workers=workers, stop=stop)
    return run


def steps_of(run: TrainRun) -> list[dict[str, Any]]:
    return run_log.steps(run_log.read(f"{run.uri}/log"))


def test_steps_of_one_task_do_not_depend_on_workers_and_interruptions(
    task_rows: OrderedRows, source_folder: str, tmp_path: Path
) -> None:
    whole = train(task_rows, source_folder, str(tmp_path / "whole"), 2)
    runs = []
    for after in (2, 1):
        folder = str(tmp_path / f"parted{after}")
        with pytest.raises(Stopped):
            train(task_rows, source_folder, folder, 2, stop=4)
        runs.append(train(task_rows, source_folder, folder, after))
    losses = [[step["loss"] for step in steps_of(run)] for run in (whole, *runs)]
    assert losses[1] == losses[0]
    assert np.abs(np.subtract(losses[2], losses[0])).max() < 1e-5
    files = [storage.read_bytes(f"{run.export_uri}/model.safetensors") for run in (whole, runs[0])]
    assert files[0] == files[1]
    uri = f"{runs[1].uri}/{ledger.FOLDER}"
    assert all(finding.is_ok for finding in audit.audit(uri, runs[1].rows, audit.read_history(uri)))
    by_task = [step["streams"] for step in steps_of(whole)]
    assert all(len(one) == 1 for one in by_task)
    assert [next(iter(one)) for one in by_task].count("small/one") == 4
