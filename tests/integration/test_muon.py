"""Muon under ZeRO agrees with the published formula on any number of ranks, and resumes from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForMaskedLM

from data_pipeline.errors import TrainingError
from tests.integration.test_universal import ROWS, batch, largest_difference
from tests.ranks import on_ranks
from trainer.checkpoints.restore import load_universal
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.optimizer import parameter_groups
from trainer.engine.setup import make_engine
from trainer.engine.step import optimizer_step, set_rates
from trainer.models.packed_lm import PackedLM

SAVED, STEPS = 2, 4
SETTINGS: dict[str, Any] = {"warmup_steps": 0, "learning_rate": 1e-2, "muon_rate": 0.05, "weight_decay": 0.3, "clip": 0.0}


@dataclass(frozen=True)
class Run:
    model: str
    folder: str
    stage: int = 1

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(steps=STEPS, batch_size=ROWS, micro_batch=1, zero_stage=self.stage, **SETTINGS)

    def module(self) -> PackedLM:
        return PackedLM(AutoModelForMaskedLM.from_pretrained(self.model), causal=False)

    def engine(self) -> Any:
        return make_engine(self.module(), self.config, 1, ROWS // dist.get_world_size())

    def steps(self, engine: Any, first: int, end: int) -> list[float]:
        losses, rank, world = [], dist.get_rank(), dist.get_world_size()
        for step in range(first, end):
            set_rates(engine, self.config, step)
            batches = [batch(step, row) for row in range(rank, ROWS, world)]
            losses.append(optimizer_step(engine, batches, 1, 0, False).loss)
        return losses


def one_step(run: Run) -> list[float]:
    engine = run.engine()
    losses = run.steps(engine, 0, 1)
    if dist.get_rank() == 0:
        torch.save(engine.module.state_dict(), f"{run.folder}/weights.pt")
    return losses


def save_and_continue(run: Run) -> list[float]:
    engine = run.engine()
    run.steps(engine, 0, SAVED)
    engine.save_checkpoint(run.folder, tag="ds", save_latest=False)
    return run.steps(engine, SAVED, STEPS)


def resume(run: Run) -> list[float]:
    engine = run.engine()
    engine.load_checkpoint(run.folder, tag="ds")
    return run.steps(engine, SAVED, STEPS)


def train_with_infinite_loss(run: Run) -> dict[str, Any]:
    """Trains three steps, the second with an infinite loss, and then the first and third alone."""
    losses, engine = [], run.engine()
    for step, broken in enumerate((False, True, False)):
        set_rates(engine, run.config, step // 2)
        batches = [batch(step, row) for row in range(dist.get_rank(), ROWS, dist.get_world_size())]
        handle = engine.module.register_forward_hook(
            lambda *arguments, broken=broken: arguments[-1] * (float("inf") if broken else 1)
        )
        losses.append(optimizer_step(engine, batches, 1, 0, False))
        handle.remove()
    again = run.engine()
    for step in (0, 2):
        set_rates(again, run.config, step // 2)
        batches = [batch(step, row) for row in range(dist.get_rank(), ROWS, dist.get_world_size())]
        loss = optimizer_step(again, batches, 1, 0, False).loss
    same = all(
        torch.equal(one, other) for one, other in zip(engine.module.parameters(), again.module.parameters(), strict=True)
    )
    return {"applied": [one.is_applied for one in losses], "losses": [losses[2].loss, loss], "same": same}


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Five steps of Newton-Schulz in fp64, as Jordan et al. print them; torch's Muon takes them in bf16, which is too rough."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def reference(run: Run) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Weights after one step in one process by the published formula and torch's AdamW, and the names that Muon trains."""
    module, config = run.module(), run.config
    batches = [batch(0, row) for row in range(ROWS)]
    (sum(module(one).sum() for one in batches) / sum(len(one.labels) for one in batches)).backward()
    names, muon = {id(weight): name for name, weight in module.named_parameters()}, set()
    for group in parameter_groups(module, config):
        if not group["use_muon"]:
            torch.optim.AdamW(group["params"], lr=config.learning_rate, weight_decay=group["weight_decay"]).step()
            continue
        for weight in group["params"]:
            muon.add(names[id(weight)])
            decayed = weight.detach() * (1 - SETTINGS["muon_rate"] * SETTINGS["weight_decay"])
            weight.data = (decayed - SETTINGS["muon_rate"] * orthogonal(weight.grad)).float()
    return module.state_dict(), muon


@pytest.mark.parametrize(
    ("stage", "world"), [pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(1, 2, marks=pytest.mark.slow), (2, 3)]
)
def test_a_step_is_that_of_the_formula(stage: int, world: int, source_folder: str, tmp_path: Path) -> None:
    run = Run(source_folder, str(tmp_path), stage)
    on_ranks(world, one_step, run)
    (expected, muon), actual = reference(run), torch.load(tmp_path / "weights.pt")
    assert {tuple(expected[name].shape) for name in muon} == {(32, 32), (64, 32), (32, 64)}
    assert all("encoder" in name or "transform" in name for name in muon)
    for name, weight in expected.items():
        if "key.bias" in name:  # its gradient is only rounding errors, which AdamW scales up to whole steps
            continue
        assert (actual[name] - weight).abs().max() < (2e-4 if name in muon else 1e-5), name


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(stage: int, source_folder: str, tmp_path: Path) -> None:
    run = Run(source_folder, str(tmp_path), stage)
    straight = on_ranks(2, save_and_continue, run)
    assert largest_difference(on_ranks(2, resume, run), straight) == 0.0


def test_an_infinite_loss_leaves_weights_and_momentum_alone(source_folder: str, tmp_path: Path) -> None:
    result = on_ranks(2, train_with_infinite_loss, Run(source_folder, str(tmp_path)))
    assert result["applied"] == [True, False, True]
    assert result["losses"][0] == result["losses"][1]
    assert result["same"]


def test_other_numbers_of_workers_are_refused() -> None:
    class Engine:
        class optimizer:
            param_groups = ({"use_muon": False}, {"use_muon": True})

    with pytest.raises(TrainingError, match="as many workers"):
        load_universal(Engine, None, "folder")  # type: ignore[arg-type]
