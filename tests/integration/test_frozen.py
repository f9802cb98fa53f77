"""Frozen weights stay unchanged through resumes and exports, and the others train as in plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import ConfigError
from tests.integration.stepwise import stepwise, stepwise_config
from tests.integration.test_universal import ROWS, batch
from tests.ranks import on_ranks
from trainer.checkpoints import export
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import write_task
from trainer.config.train import TrainConfig
from trainer.models.freezing import frozen_names
from trainer.tasks.language_modeling import LanguageModelTask

STEPS = 3
EMBEDDINGS = {
    "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight",
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
}


class Run:
    """Three steps of six rows; a checkpoint after each."""

    def __init__(self, model: str, folder: str, stage: int, precision: str, frozen: tuple[str, ...]) -> None:
        self.task = LanguageModelTask(model_uri=model, length=32, probability=0.15, seed=1)
        self.folder = folder
        self.config = stepwise_config(STEPS, stage, precision, frozen=frozen)


def train(run: Run, first: int) -> list[float]:
    """Trains from step `first` on, starting at its checkpoint; the export folder is named after `first`."""
    import torch.distributed as dist

    from trainer.deepspeed_bridge import partitioned
    from trainer.engine import setup

    module = partitioned.load_module(run.task, run.config)
    return stepwise(run, setup.make_engine(module, run.config, 1, ROWS // dist.get_world_size()), first)


def by_hand(run: Run) -> list[float]:
    """Trains the same in plain torch, and returns the losses."""
    module = run.task.module().train()
    names = frozen_names(module, run.config.frozen)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name not in names)
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    optimizer = torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.01}, {"params": groups[1], "weight_decay": 0.0}])
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = run.config.rate(step, True)
        target_losses = torch.cat([module(batch(step, row)) for row in range(ROWS)])
        optimizer.zero_grad()
        target_losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.config.clip)
        optimizer.step()
        losses.append(float(target_losses.detach().mean()))
    return losses


@pytest.mark.parametrize(
    ("world", "stage", "precision", "frozen"),
    [
        (2, 1, "fp32", "body"),
        pytest.param(3, 3, "bf16", "embeddings", marks=pytest.mark.slow),
        pytest.param(2, 2, "bf16", "*.layer.0.*", marks=pytest.mark.slow),
        pytest.param(2, 3, "fp32", "body", marks=pytest.mark.slow),
        pytest.param(1, 1, "bf16", "embeddings", marks=pytest.mark.slow),
    ],
)
def test_what_is_frozen_stays_and_the_rest_trains_as_in_plain_torch(
    source_folder: str, tmp_path: Path, world: int, stage: int, precision: str, frozen: str
) -> None:
    run = Run(source_folder, str(tmp_path), stage, precision, (frozen,))
    store = Store(f"{tmp_path}/checkpoints", 9)
    losses = on_ranks(world, train, run, 0)
    assert losses == pytest.approx(by_hand(run), abs=1e-5 if precision == "fp32" else 0.05)

    source, exported = load_file(f"{source_folder}/model.safetensors"), load_file(tmp_path / "from-0" / "model.safetensors")
    unchanged = {name.removeprefix("model.") for name in frozen_names(run.task.module(), (frozen,))}
    assert {name for name in exported if torch.equal(exported[name], source[name])} == unchanged & set(exported)
    assert set(exported) == set(source)

    write_task(store, run.task, run.config.frozen)
    newest = store.usable()[0]
    checkpoint_weights = torch.load(next(Path(store.uri, newest, "ds").glob("*model_states.pt")), weights_only=False)["module"]
    assert not unchanged & {name.removeprefix("model.") for name in checkpoint_weights}
    export.export(store, newest, f"{tmp_path}/out")
    assert same(load_file(tmp_path / "out" / "model.safetensors"), exported)

    assert on_ranks(world, train, run, 1) == losses[1:]  # type: ignore[arg-type]
    assert same(load_file(tmp_path / "from-1" / "model.safetensors"), exported)
    others = on_ranks(1 if world > 1 else 2, train, run, 2)
    assert others == pytest.approx(losses[2:], abs=1e-5 if precision == "fp32" else 0.05)
    again = load_file(tmp_path / "from-2" / "model.safetensors")
    assert {name for name in again if torch.equal(again[name], source[name])} == unchanged & set(exported)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_frozen_weights_are_chosen_by_names_and_patterns(source_folder: str) -> None:
    module = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1).module()
    names = {name.removeprefix("model.") for name, _ in module.named_parameters(remove_duplicate=False)}

    def frozen(*patterns: str) -> set[str]:
        return {name.removeprefix("model.") for name in frozen_names(module, patterns)}

    assert frozen("embeddings") == EMBEDDINGS
    assert frozen("body") == names - EMBEDDINGS
    assert frozen("cls.predictions.decoder.weight") >= {"bert.embeddings.word_embeddings.weight"}  # tied
    assert frozen("*.layer.[1-9].*") == {name for name in names if ".layer.1." in name}
    assert frozen() == set()
    with pytest.raises(ConfigError, match=r"'\*.layer.9.\*' fits no parameter"):
        frozen("embeddings", "*.layer.9.*")
    with pytest.raises(ConfigError, match="nothing is left"):
        frozen("embeddings", "body")
    with pytest.raises(ConfigError, match="embedding_steps trains the embeddings alone"):
        TrainConfig(frozen=("embeddings",), embedding_steps=2)
