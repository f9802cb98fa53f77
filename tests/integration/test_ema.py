"""The average of the weights is torch's own in every ZeRO stage, does not change training, and survives a resume."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data_pipeline.errors import ConfigError
from tests.integration.stepwise import stepwise, stepwise_config
from tests.integration.test_frozen import same
from tests.integration.test_universal import ROWS
from tests.ranks import on_ranks
from trainer.checkpoints import export
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import write_task
from trainer.config.train import TrainConfig
from trainer.tasks.language_modeling import LanguageModelTask

STEPS, DECAY = 4, 0.7


class Run:
    """Four steps of six rows, with a checkpoint after each; `look` also extracts the average after each step."""

    def __init__(self, model: str, folder: str, stage: int, precision: str, ema: float | None, look: bool) -> None:
        self.task = LanguageModelTask(model_uri=model, length=32, probability=0.15, seed=1)
        self.folder, self.look = folder, look
        self.config = stepwise_config(STEPS, stage, precision, ema=ema)


def train(run: Run, first: int) -> list[float]:
    import torch.distributed as dist

    from trainer.deepspeed_bridge import partitioned
    from trainer.deepspeed_bridge.trained_weights import trained_weights
    from trainer.deepspeed_bridge.weight_average import averaged_weights
    from trainer.engine import setup

    engine = setup.make_engine(partitioned.load_module(run.task, run.config), run.config, 1, ROWS // dist.get_world_size())

    def look(step: int) -> None:
        if not run.look:
            return
        with trained_weights(engine, run.config, run.folder) as weights:
            before = {name: weight.clone() for name, weight in weights.items()}
        with averaged_weights(engine):
            pass
        with trained_weights(engine, run.config, run.folder) as weights:
            assert same(before, weights)
        if dist.get_rank() == 0:
            torch.save(before, f"{run.folder}/weights-{step}.pt")

    return stepwise(run, engine, first, look)


@pytest.mark.parametrize(
    ("world", "stage", "precision"),
    [
        (2, 1, "fp32"),
        pytest.param(3, 3, "bf16", marks=pytest.mark.slow),
        pytest.param(2, 2, "bf16", marks=pytest.mark.slow),
        pytest.param(2, 3, "fp32", marks=pytest.mark.slow),
        pytest.param(1, 1, "bf16", marks=pytest.mark.slow),
    ],
)
def test_the_average_is_torch_s_and_survives_a_resume(
    source_folder: str, tmp_path: Path, world: int, stage: int, precision: str
) -> None:
    folders = {name: str(tmp_path / name) for name in ("plain", "quiet", "looked")}
    for folder in folders.values():
        Path(folder).mkdir()
    plain = Run(source_folder, folders["plain"], stage, precision, None, False)
    quiet = Run(source_folder, folders["quiet"], stage, precision, DECAY, False)
    looked = Run(source_folder, folders["looked"], stage, precision, DECAY, True)
    losses = [on_ranks(world, train, run, 0) for run in (plain, quiet, looked)]  # type: ignore[arg-type]
    assert losses[0] == losses[1] == losses[2]

    exported = load_file(f"{folders['quiet']}/from-0/model.safetensors")
    assert same(load_file(f"{folders['looked']}/from-0/model.safetensors"), exported)
    snapshots = [torch.load(f"{folders['looked']}/weights-{step}.pt") for step in range(STEPS)]
    average, update = dict(snapshots[0]), get_ema_multi_avg_fn(DECAY)
    for snapshot in snapshots[1:]:
        names = [name for name, weight in snapshot.items() if weight.is_floating_point()]
        update([average[name] for name in names], [snapshot[name] for name in names], torch.tensor(0))
    for name, weight in exported.items():
        assert torch.allclose(weight, average[f"model.{name}"], rtol=0, atol=1e-7), name
    assert not same(exported, load_file(f"{folders['plain']}/from-0/model.safetensors"))

    store = Store(f"{folders['quiet']}/checkpoints", 9)
    write_task(store, quiet.task)
    export.export(store, store.usable()[0], str(tmp_path / "out"))
    assert same(load_file(tmp_path / "out" / "model.safetensors"), exported)
    assert on_ranks(world, train, quiet, 2) == losses[0][2:]  # type: ignore[arg-type]
    assert same(load_file(f"{folders['quiet']}/from-2/model.safetensors"), exported)


def test_settings_that_exclude_the_average_are_refused() -> None:
    for settings in ({"ema": 1.0}, {"ema": 0.0}):
        with pytest.raises(ConfigError, match="ema must lie between 0 and 1"):
            TrainConfig(**settings)
    for settings in ({"offload": "optimizer"}, {"muon_rate": 0.02, "clip": 0}, {"hpz": 2, "zero_stage": 3}):
        with pytest.raises(ConfigError, match="an average of the weights"):
            TrainConfig(ema=0.9, **settings)
