"""How a run handles infinite losses, spikes, and a step that kills its workers."""

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch

from data_pipeline.artifacts import storage
from data_pipeline.errors import TrainingError
from tests.integration.test_engine import ordered_rows
from tests.ranks import fit, train_run
from trainer.config.train import TrainConfig
from trainer.engine import launch
from trainer.engine.train_run import TrainRun
from trainer.ledger import audit, ledger
from trainer.models.packed_lm import PackedLM
from trainer.monitoring import run_log
from trainer.tasks.language_modeling import LanguageModelTask

BATCH = 4


@dataclass(frozen=True)
class Poisoned:
    """A task that in some steps of the order multiplies its losses, fails in its forward, or ends the process."""

    task: LanguageModelTask
    factors: dict[int, float]
    deadly: tuple[int, ...] = ()
    failing: tuple[int, ...] = ()

    chunk_tokens: ClassVar[int | None] = None
    passes: ClassVar[str] = "direct"

    @property
    def length(self) -> int:
        return self.task.length

    def module(self, each: Any = None) -> Any:
        module = self.task.module(each)
        forward, factors, failing = module.forward, self.factors, self.failing

        def poisoned(batch: Any) -> Any:
            if batch.order_step in failing:
                raise RuntimeError(f"The size of tensor a (8) must match b (64) in {batch.order_step}")
            return forward(batch.batch) * factors.get(batch.order_step, 1.0)

        module.forward = poisoned
        return module

    def collator(self) -> Any:
        collate, deadly = self.task.collator(), self.deadly

        def marked(rows: pa.Table) -> Any:
            step = rows["step"][0].as_py()
            if step in deadly:
                os._exit(9)
            return Marked(collate(rows), step)

        return marked

    def export(self, weights: Any, uri: str, frozen: Any = ()) -> None:
        self.task.export(weights, uri, frozen)


@dataclass(frozen=True)
class Dying:
    """A task whose process is killed while it builds the model, as when memory runs out."""

    task: Any
    chunk_tokens: ClassVar[int | None] = None

    @property
    def length(self) -> int:
        return 32

    def module(self) -> Any:
        os._exit(9)

    def collator(self) -> Any:
        return self.task.collator()

    def export(self, weights: Any, uri: str, frozen: Any = ()) -> None:
        self.task.export(weights, uri, frozen)


@dataclass(frozen=True)
class Unwritable(Poisoned):
    """Its export fails a few times, as on a full disk."""

    fails: int = 0

    def export(self, weights: Any, uri: str, frozen: Any = ()) -> None:
        for number in range(self.fails):
            if not storage.exists(f"{uri}-failed-{number}"):
                storage.write_bytes(f"{uri}-failed-{number}", b"")
                raise OSError(28, "No space left on device")
        self.task.export(weights, uri, frozen)


class Marked:
    """A batch that knows its step in the order."""

    def __init__(self, batch: Any, order_step: int) -> None:
        self.batch, self.order_step = batch, order_step

    def __getattr__(self, name: str) -> Any:
        if name in ("batch", "__setstate__", "__getstate__"):
            raise AttributeError(name)
        return getattr(self.batch, name)

    def to(self, device: Any) -> "Marked":
        return Marked(self.batch.to(device), self.order_step)


def run(shards, source_folder: str, folder: str, stage: int, steps: int, **poison: Any) -> TrainRun:  # type: ignore[no-untyped-def]
    config = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        zero_stage=stage,
        checkpoint_steps=10,
        learning_rate=1e-4,
        precision=poison.pop("precision", "fp32"),
    )
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.5, seed=1)
    return train_run(Poisoned(task, **poison), config, ordered_rows(shards, BATCH, None), folder)


def entries(folder: str, kind: str) -> list[dict[str, Any]]:
    return [entry for attempt in run_log.read(f"{folder}/log") for entry in attempt if entry["kind"] == kind]


def clean(one: TrainRun) -> bool:
    uri = storage.join(one.uri, ledger.FOLDER)
    return all(finding.is_ok for finding in audit.audit(uri, one.rows, audit.read_history(uri)))


@pytest.mark.parametrize(
    ("stage", "precision", "value"),
    [
        (1, "fp32", float("nan")),
        (2, "bf16", float("inf")),
        (3, "bf16", float("nan")),
    ],
)
def test_a_step_whose_loss_is_not_finite_is_left_out(shards, source_folder: str, tmp_path, stage, precision, value) -> None:  # type: ignore[no-untyped-def]
    one = run(shards, source_folder, str(tmp_path), stage, 6, factors={2: value}, precision=precision)
    history = fit(one, workers=2)["history"]
    assert [entry["applied"] for entry in history] == [True, True, False, True, True, True]
    assert all(entry["loss"] < 2 * history[0]["loss"] for entry in history if entry["applied"])
    assert clean(one)


def test_a_loss_that_leaps_takes_the_run_back_and_its_rows_are_left_out(shards, source_folder: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    one = run(shards, source_folder, str(tmp_path), 2, 50, factors={44: 30.0})
    result = fit(one, workers=2)
    back = entries(str(tmp_path), "back")
    assert [(entry["step"], entry["next_step"], entry["first"], entry["last"]) for entry in back] == [(44, 0, 0, 45)]
    assert "robust standard deviations" in back[0]["why"]
    history = result["history"]
    assert [entry["planned"] for entry in history] == [*range(45, 95)]
    assert max(entry["loss"] for entry in history) < 2 * history[0]["loss"]
    assert clean(one)
    assert audit.read_history(f"{tmp_path}/ledger").skipped == ((0, 45),)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_that_kills_its_workers_three_times_ends_the_run_and_is_named(shards, source_folder: str, tmp_path, ray) -> None:  # type: ignore[no-untyped-def]
    one = run(shards, source_folder, str(tmp_path), 1, 8, factors={}, deadly=(3,))
    with pytest.raises(
        TrainingError, match=r"step 3 \(step 3 of the order, 4 slots\): 3 attempts in a row died .* rows are el \d+, el"
    ):
        launch.fit(one, workers=1, worker_cpus=1, gpu=False) if ray else fit(one, workers=1)
    # The first attempt died one step early, while it prefetched; later attempts do not prefetch.
    assert len(entries(str(tmp_path), "start")) == 4
    rows = entries(str(tmp_path), "error")[0]["rows"]
    assert rows == [f"el {row}" for row in one.rows.order.step(3).row]
    assert one.store.usable()


def test_an_exception_before_the_first_step_is_done_ends_the_run_at_once(shards, source_folder: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    failing = run(shards, source_folder, str(tmp_path), 1, 8, factors={}, failing=(0,))
    with pytest.raises(
        TrainingError, match=r"before its first step was done: RuntimeError: The size of tensor a \(8\) must"
    ) as it:
        fit(failing, workers=2)
    assert "test_guards.py" in str(it.value)
    assert "rows" not in str(it.value)
    assert len(entries(str(tmp_path), "start")) == 1


def test_an_exception_in_a_later_step_stands_before_its_rows(shards, source_folder: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    failing = run(shards, source_folder, str(tmp_path), 1, 8, factors={}, failing=(3,))
    pattern = (
        r"step 3 .* 3 attempts in a row died in this step, of RuntimeError: The size of tensor .* \(rank 0, .*Its rows are el"
    )
    with pytest.raises(TrainingError, match=pattern):
        fit(failing, workers=1)


def test_workers_that_die_before_they_train_end_the_run(shards, source_folder: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    failing = run(shards, source_folder, str(tmp_path), 1, 8, factors={})
    with pytest.raises(TrainingError, match="3 attempts in a row died before they trained, without an exception: killed"):
        fit(replace(failing, task=Dying(failing.task)), workers=1)


@pytest.mark.parametrize("fails", [1, 3])
def test_an_export_that_fails_trains_nothing_again_and_blames_no_rows(shards, source_folder: str, tmp_path, fails) -> None:  # type: ignore[no-untyped-def]
    failing = run(shards, source_folder, str(tmp_path), 1, 6, factors={})
    failing = replace(failing, task=Unwritable(failing.task.task, {}, fails=fails))
    if fails < 3:
        fit(failing, workers=1)
    else:
        with pytest.raises(TrainingError, match=r"3 attempts in a row died while the trained model .* No space left") as it:
            fit(failing, workers=1)
        assert "rows" not in str(it.value)
        fit(failing, workers=1)
    assert [entry["step"] for entry in entries(str(tmp_path), "step")] == list(range(6))
    assert clean(failing)


def test_a_poisoned_module_multiplies_the_loss_of_the_plain_one(shards, source_folder: str) -> None:  # type: ignore[no-untyped-def]
    """A canary: the wrapper changes nothing but the factor."""
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    one = ordered_rows(shards, BATCH, None)
    rows = one.reader().read(one.order.step(0))
    batch = task.collator()(rows)
    poisoned = Poisoned(task, {0: 2.0})
    assert isinstance(task.module(), PackedLM)
    assert torch.allclose(poisoned.module().eval()(poisoned.collator()(rows)), 2 * task.module().eval()(batch))
