"""The model folder exported from a checkpoint equals the one that the run itself would have written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data_pipeline.artifacts import artifact, lease
from data_pipeline.errors import ArtifactError, CorruptError
from tests.integration.conftest import ROOT, environment
from tests.integration.test_universal import ROWS, batch
from tests.ranks import on_ranks
from trainer.checkpoints import export
from trainer.checkpoints.state import RunState
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import read_task, write_task
from trainer.config.train import TrainConfig
from trainer.embedder_spec import EmbedderSpec
from trainer.models.adapters import Lora
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask


class Run:
    """Six rows a step on any number of ranks; checkpoints after steps 1 and 3, and the run's own exports at these steps."""

    def __init__(self, model: str, folder: str, stage: int, precision: str, saved_in: str) -> None:
        self.task = LanguageModelTask(model_uri=model, length=32, probability=0.15, seed=1)
        self.folder = folder
        self.config = TrainConfig(
            steps=3,
            batch_size=ROWS,
            micro_batch=1,
            learning_rate=1e-2,
            zero_stage=stage,
            precision=precision,
            export=saved_in,  # type: ignore[arg-type]
        )


NAME = "run [1] (a+b) lr=1e-4"
"""A run name with characters that are special in globs and regular expressions."""


def train(run: Run) -> list[str]:
    import torch.distributed as dist

    from trainer.checkpoints.writer import CheckpointWriter
    from trainer.deepspeed_bridge import partitioned
    from trainer.deepspeed_bridge.trained_weights import trained_weights
    from trainer.engine import changes, setup
    from trainer.engine.step import optimizer_step, set_rates
    from trainer.ledger.ledger import Ledger

    rank, world, store = dist.get_rank(), dist.get_world_size(), Store(f"{run.folder}/checkpoints", 3)
    engine = setup.make_engine(partitioned.load_module(run.task, run.config), run.config, 1, ROWS // world)
    engine.train()
    saver, state = CheckpointWriter(engine, store, Ledger(f"{run.folder}/ledger", rank)), RunState(identity="a")
    for step in range(3):
        set_rates(engine, run.config, step)
        optimizer_step(engine, [batch(step, row) for row in range(rank, ROWS, world)], 1, 0, False)
        state.next_step = step + 1
        changes.adopt_settings(state, run.config)
        if step != 1:
            saver.begin(state)
            saver.finish(state)
            with trained_weights(engine, run.config, run.folder) as weights:
                if rank == 0:
                    run.task.export(weights, f"{run.folder}/own-{step + 1}")
    return store.usable()


@pytest.mark.parametrize(
    ("world", "stage", "precision", "saved_in"),
    [
        (2, 1, "fp32", "fp32"),
        (3, 3, "bf16", "fp32"),
        pytest.param(2, 2, "bf16", "bf16", marks=pytest.mark.slow),
        pytest.param(2, 3, "fp32", "fp32", marks=pytest.mark.slow),
        pytest.param(1, 1, "bf16", "fp32", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_gives_the_folder_that_the_run_would_have_written(
    source_folder: str, tmp_path: Path, world: int, stage: int, precision: str, saved_in: str
) -> None:
    run = Run(source_folder, str(tmp_path), stage, precision, saved_in)
    names = on_ranks(world, train, run)
    store = Store(f"{tmp_path}/checkpoints", 3)
    write_task(store, run.task)
    for name, step in zip(names, (3, 1), strict=True):
        result = export.export(store, name, f"{tmp_path}/out-{step}")
        assert (result.kind, result.config["step"]) == ("model", step)
        run_weights, exported_weights = (
            load_file(tmp_path / f"{folder}-{step}" / "model.safetensors") for folder in ("own", "out")
        )
        assert run_weights.keys() == exported_weights.keys()
        for key, weight in run_weights.items():
            assert weight.dtype == exported_weights[key].dtype
            assert torch.equal(weight, exported_weights[key]), (step, key)
    assert not list(tmp_path.glob("*.draft"))


def test_scion_export_needs_neither_ray_nor_a_gpu_and_leaves_nothing_half_written(source_folder: str, tmp_path: Path) -> None:
    run = Run(source_folder, str(tmp_path / NAME), 1, "fp32", "fp32")
    (tmp_path / NAME).mkdir()
    names = on_ranks(1, train, run)
    store = Store(f"{tmp_path}/{NAME}/checkpoints", 3)
    with pytest.raises(ArtifactError, match="does not say what it trains"):
        export.export(store, names[0], str(tmp_path / "early"))
    write_task(store, run.task)

    def scion(*arguments: str) -> subprocess.CompletedProcess[str]:
        # Makes the import of Ray fail, as if it were not installed.
        code = "import sys; sys.modules['ray'] = None; from ray_jobs.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "export", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment(None), capture_output=True, text=True, check=False)

    process = scion(str(tmp_path / NAME))
    assert process.returncode == 0, process.stderr
    assert f"model after 3 steps: {tmp_path}/{NAME}-step-3" in process.stdout
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / f"{NAME}-step-3")
    assert AutoTokenizer.from_pretrained(tmp_path / f"{NAME}-step-3")("help").input_ids
    refused = scion(str(tmp_path / NAME), "2")
    assert refused.returncode == 2
    assert "there is no checkpoint of step 2. There are checkpoints of 1, 3." in refused.stderr
    assert scion(str(tmp_path)).returncode == 2

    before = (tmp_path / f"{NAME}-step-3" / "artifact.json").stat().st_mtime_ns
    export.export(store, names[0], str(tmp_path / f"{NAME}-step-3"))
    assert (tmp_path / f"{NAME}-step-3" / "artifact.json").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="differs in checkpoint"):
        export.export(store, names[1], str(tmp_path / f"{NAME}-step-3"))
    path = next(Path(store.uri, names[1], "ds").glob("*_optim_states.pt"))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CorruptError, match="changed since it was written"):
        export.export(store, names[1], str(tmp_path / "torn"))
    (tmp_path / NAME / artifact.UNFINISHED).write_text(json.dumps({"id": "x", "kind": "model", "config": {}, "inputs": {}}))
    with pytest.raises(ArtifactError, match="an unfinished run is here"):
        export.export(store, names[0], str(tmp_path / NAME))
    assert store.usable()
    with lease.hold(f"{tmp_path}/both.lease.json"), pytest.raises(ArtifactError, match="another run is writing here"):
        export.export(store, names[0], str(tmp_path / "both"))
    assert {entry.name for entry in tmp_path.iterdir()} == {NAME, f"{NAME}-step-3"}


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "checkpoints"), 3)
    spec = EmbedderSpec(pooling="cls", max_length=64, dimensions=(8, 16))
    for task in (
        ContrastiveTask(model_uri="/m", spec=spec),
        LanguageModelTask(model_uri="/m", length=8, probability=0.2, seed=3),
    ):
        for frozen, lora in ((("body",), None), ((), Lora(rank=4, alpha=8, targets=("q_proj",)))):
            write_task(store, task, frozen, lora)
            task_file = read_task(store)
            assert (task_file.task, task_file.frozen, task_file.lora) == (task, frozen, lora)
