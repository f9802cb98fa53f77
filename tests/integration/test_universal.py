"""Checkpoints resume with another number of ranks."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from transformers import AutoModelForMaskedLM

from data_pipeline.artifacts import storage
from data_pipeline.errors import CorruptError, TrainingError
from data_pipeline.feed.target_batch import TargetBatch
from tests.ranks import on_ranks
from trainer import collectives
from trainer.checkpoints import node_copy as node_copies
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import universal_checkpoint
from trainer.engine.setup import make_engine
from trainer.engine.step import optimizer_step, set_rates
from trainer.engine.worker import local_model
from trainer.models.packed_lm import PackedLM
from trainer.tasks.language_modeling import LanguageModelTask

WORLDS = (1, 2, 3)
ROWS, LENGTH = 6, 12
SAVED, AGAIN, STEPS = 3, 6, 8
"""Steps up to the first checkpoint, up to the second, by another number of ranks, and in all."""


@dataclass(frozen=True)
class Run:
    """The same training for every number of ranks. The checkpoint of `a` ranks is in `folder/a`, that of `b` ranks that resumed
    from it in `folder/a-b`. Each is stored in DeepSpeed's own form, `ds`, and as a universal checkpoint, `uc`."""

    model: str
    folder: str
    stage: int
    precision: str = "fp32"

    def engine(self) -> Any:
        module = PackedLM(AutoModelForMaskedLM.from_pretrained(self.model), causal=False)
        return make_engine(module, self.config, 1, ROWS // dist.get_world_size())

    @property
    def config(self) -> TrainConfig:
        """Settings in which all four parameter groups differ in rate or decay, and gradients are clipped."""
        return TrainConfig(
            steps=STEPS,
            batch_size=ROWS,
            micro_batch=1,
            warmup_steps=2,
            learning_rate=1e-2,
            weight_decay=0.3,
            embedding_steps=1,
            zero_stage=self.stage,
            precision=self.precision,
        )

    def steps(self, engine: Any, first: int, end: int) -> list[float]:
        rank, world = dist.get_rank(), dist.get_world_size()
        losses = []
        for step in range(first, end):
            set_rates(engine, self.config, step)
            batches = [batch(step, row) for row in range(rank, ROWS, world)]
            losses.append(optimizer_step(engine, batches, 1, 0, False).loss)
        return losses

    def convert(self, name: str) -> None:
        before = set(os.listdir(f"{self.folder}/{name}"))
        universal_checkpoint.convert(f"{self.folder}/{name}/ds", f"{self.folder}/{name}/uc", self.stage)
        assert set(os.listdir(f"{self.folder}/{name}")) - before == {"uc"}


def batch(step: int, row: int) -> TargetBatch:
    """One row of the global batch of a step; rows differ in how many targets they have."""
    draw = torch.Generator().manual_seed(100 * step + row)
    ids = torch.randint(5, 300, (1, LENGTH), generator=draw)
    places = torch.randperm(LENGTH, generator=draw)[: 2 + row]
    return TargetBatch(
        input_ids=ids,
        segments=torch.zeros_like(ids),
        positions=torch.arange(LENGTH)[None],
        places=places,
        labels=ids[0, places],
        streams=torch.zeros_like(places),
        is_packed=False,
        tokens=LENGTH,
        attention_pairs=LENGTH**2,
    )


def engine_state(engine: Any) -> dict[str, Any]:
    """Full weights, master weights and moments by name, and all counters and settings."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed links the moments of all groups after the first step of the first, when the others have none yet.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    values: dict[str, Any] = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            values[f"{name} weight"] = parameter.detach().clone()
        values[f"{name} fp32"] = safe_get_full_fp32_param(parameter)
        for key in ("exp_avg", "exp_avg_sq"):
            values[f"{name} {key}"] = safe_get_full_optimizer_state(parameter, key)
    inner = engine.optimizer.optimizer
    counters = [state["step"] for state in inner.state.values()]
    assert len({id(counter) for counter in counters}) == len(inner.param_groups) == 4
    groups = [{key: value for key, value in group.items() if key != "params"} for group in inner.param_groups]
    totals = {"global_steps": engine.global_steps, "samples": engine.global_samples, "skipped": engine.skipped_steps}
    return values | totals | {"counters": {float(counter) for counter in counters}, "groups": groups}


def differing_names(actual: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    def same(one: Any, other: Any) -> bool:
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)

    assert actual.keys() == expected.keys()
    return [name for name in actual if not same(actual[name], expected[name])]


def train_through(run: Run) -> list[float]:
    """Trains to the end with a checkpoint after `SAVED` steps; returns the loss of every step."""
    engine = run.engine()
    losses = run.steps(engine, 0, SAVED)
    folder = f"{run.folder}/{dist.get_world_size()}"
    engine.save_checkpoint(folder, tag="ds", save_latest=False)
    whole = engine_state(engine)
    if dist.get_rank() == 0:
        torch.save(whole, f"{folder}/whole.pt")
    return losses + run.steps(engine, SAVED, STEPS)


def resume_from_others(run: Run, worlds: tuple[int, ...]) -> dict[int, dict[str, list]]:
    """Resumes from the checkpoint of each number of ranks, saves in DeepSpeed's own form, and resumes from that."""
    results = {}
    for other in worlds:
        engine = run.engine()
        universal_checkpoint.load(engine, f"{run.folder}/{other}", "uc")
        wrong = differing_names(engine_state(engine), torch.load(f"{run.folder}/{other}/whole.pt"))
        losses = run.steps(engine, SAVED, AGAIN)
        folder = f"{run.folder}/{other}-{dist.get_world_size()}"
        engine.save_checkpoint(folder, tag="ds", save_latest=False)
        engine = run.engine()
        engine.load_checkpoint(folder, tag="ds")
        results[other] = {"wrong": wrong, "losses": losses + run.steps(engine, AGAIN, STEPS)}
    return results


def from_own_files(run: Run) -> dict[str, Any]:
    """Resumes from a copy of the files that each rank reads, as if the checkpoint lay in an object store."""
    storage.is_local = lambda uri: False  # type: ignore[assignment]
    node_copies.machine_id = lambda: str(dist.get_rank())  # type: ignore[assignment]
    world, engine = dist.get_world_size(), run.engine()
    with node_copies.node_copy(f"{run.folder}/{world}", node_copies.reads) as folder:
        files = sorted(os.listdir(f"{folder}/ds"))
        engine.load_checkpoint(folder, tag="ds")
    is_left = all(os.path.exists(copy) for copy in collectives.from_every_rank(folder))
    wrong = differing_names(engine_state(engine), torch.load(f"{run.folder}/{world}/whole.pt"))
    return {
        "files": collectives.from_every_rank(files),
        "wrong": wrong,
        "left": is_left,
        "losses": run.steps(engine, SAVED, STEPS),
    }


def fetch_model(run: Run) -> dict[str, Any]:
    """Loads the model as if it lay in an object store, with two ranks on a machine."""
    storage.is_local = lambda uri: not uri.startswith(run.model)  # type: ignore[assignment]
    node_copies.machine_id = lambda: str(dist.get_rank() // 2)  # type: ignore[assignment]
    requests, get = list[str](), LocalFileSystem.get_file

    def get_and_count(self: Any, source: str, *arguments: Any, **named: Any) -> None:
        requests.append(os.path.basename(source))
        get(self, source, *arguments, **named)

    LocalFileSystem.get_file = get_and_count
    with local_model(LanguageModelTask(model_uri=run.model, length=32, probability=0.15, seed=1)) as task:
        task.module(), task.collator()
        weights = task.module().state_dict()
    own_copy = shutil.copytree(run.model, f"{run.folder}/{dist.get_rank()}")
    expected = LanguageModelTask(model_uri=own_copy, length=32, probability=0.15, seed=1).module().state_dict()
    same = all(torch.equal(weights[name], weight) for name, weight in expected.items())
    return {"asked": collectives.from_every_rank(requests), "same": collectives.from_every_rank(same)}


def resume_again(run: Run, worlds: tuple[int, ...]) -> dict[int, list[float]]:
    """Resumes from checkpoints of other numbers of ranks that had resumed from the checkpoint of this number."""
    losses = {}
    for other in worlds:
        engine = run.engine()
        universal_checkpoint.load(engine, f"{run.folder}/{dist.get_world_size()}-{other}", "uc")
        losses[other] = run.steps(engine, AGAIN, STEPS)
    return losses


def largest_difference(losses: list[float], expected: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(losses, expected, strict=True))


STAGES = [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=STAGES)
def saved_run(request: pytest.FixtureRequest, source_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The run of a ZeRO stage and its losses by number of ranks."""
    run = Run(source_folder, str(tmp_path_factory.mktemp("universal")), request.param)
    losses = {world: on_ranks(world, train_through, run) for world in WORLDS}
    for world in WORLDS:
        run.convert(str(world))
    yield run, losses
    shutil.rmtree(run.folder)


@pytest.mark.slow
def test_any_number_of_ranks_resumes_from_any_other_and_back(saved_run: tuple[Run, dict[int, list[float]]]) -> None:
    run, losses = saved_run
    for world in WORLDS:
        for other, result in on_ranks(world, resume_from_others, run, WORLDS).items():
            pair = f"{other} to {world}"
            assert result["wrong"] == [], pair
            assert largest_difference(result["losses"], losses[other][SAVED:]) < 1e-5, pair
            run.convert(f"{other}-{world}")
    for world in WORLDS:
        for other, back in on_ranks(world, resume_again, run, WORLDS).items():
            assert largest_difference(back, losses[world][AGAIN:]) < 1e-5, f"{world} to {other} to {world}"


def test_a_rank_resumes_with_only_its_own_files(saved_run: tuple[Run, dict[int, list[float]]]) -> None:
    run, losses = saved_run
    result = on_ranks(2, from_own_files, run)
    assert result["wrong"] == []
    assert result["losses"] == losses[2][SAVED:]
    assert not result["left"]
    for rank, files in enumerate(result["files"]):
        assert len(files) == 2
        assert sum(f"zero_pp_rank_{rank}_" in name for name in files) == (2 if run.stage == 3 else 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 3), (3, 2), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((3, 1), (2, 3), (1, 2), (2, 1)))],
)
def test_another_zero_stage_resumes_from_the_very_same_state(
    before: int, after: int, source_folder: str, tmp_path: Path
) -> None:
    """On the same number of ranks and on another."""
    losses = on_ranks(2, train_through, Run(source_folder, str(tmp_path), before))
    other = Run(source_folder, str(tmp_path), after)
    other.convert("2")
    for world in (2, 3):
        result = on_ranks(world, resume_from_others, other, (2,))[2]
        assert result["wrong"] == []
        assert largest_difference(result["losses"], losses[SAVED:]) < 1e-5


def test_a_full_disk_does_not_mark_the_checkpoint_as_corrupt(
    saved_run: tuple[Run, dict[int, list[float]]], tmp_path: Path
) -> None:
    run, _ = saved_run
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"pos|writ|large"):
            universal_checkpoint.convert(f"{run.folder}/2/ds", str(tmp_path / "uc"), run.stage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_incomplete_checkpoint_is_not_converted(saved_run: tuple[Run, dict[int, list[float]]], tmp_path: Path) -> None:
    run, _ = saved_run

    def assert_refused(name: str, kind: type[Exception], what: str, harm: Callable[[Path], None]) -> None:
        native = shutil.copytree(f"{run.folder}/2/ds", tmp_path / name / "ds")
        harm(native)
        with pytest.raises(kind, match=what):
            universal_checkpoint.convert(str(native), str(tmp_path / name / "uc"), run.stage)
        with pytest.raises(CorruptError, match="the universal checkpoint is incomplete"):
            universal_checkpoint.load(None, str(tmp_path / name), "uc")

    def add_frozen_weight(native: Path) -> None:
        path = min(native.glob("*_model_states.pt"))
        state = torch.load(path, weights_only=False)
        state["module"]["model.frozen"] = torch.ones(2)
        torch.save(state, path)

    def truncate(native: Path) -> None:
        path = max(native.glob("*_optim_states.pt"))
        os.truncate(path, path.stat().st_size // 2)

    assert_refused(
        "missing", CorruptError, "not all their files", lambda native: max(native.glob("*_optim_states.pt")).unlink()
    )
    assert_refused("torn", CorruptError, "cannot be converted", truncate)
    assert_refused("untrained", TrainingError, r"model\.frozen", add_frozen_weight)
    assert_refused(
        "empty", CorruptError, "file is missing", lambda native: [path.unlink() for path in native.iterdir()] and None
    )


def test_a_model_on_an_object_store_comes_once_to_each_machine(source_folder: str, tmp_path: Path) -> None:
    """Every rank once fetched all of it, and again for its tokenizer: 64 times 28 GB for a 7B model at each attempt."""
    result = on_ranks(3, fetch_model, Run(source_folder, str(tmp_path), 1))
    assert all(result["same"])
    files = sorted(os.listdir(source_folder))
    assert sorted(result["asked"][0] + result["asked"][1]) == files == sorted(result["asked"][2])


@pytest.mark.parametrize("stage", STAGES)
def test_low_precision_resumes_from_the_very_same_state(stage: int, source_folder: str, tmp_path: Path) -> None:
    """Later losses are rounded sums over other ranks, so they are only as close as those of uninterrupted runs."""
    run = Run(source_folder, str(tmp_path), stage, "bf16")
    losses = on_ranks(2, train_through, run)
    run.convert("2")
    result = on_ranks(3, resume_from_others, run, (2,))[2]
    assert result["wrong"] == []
    assert largest_difference(result["losses"], losses[SAVED:]) < 0.03
