"""Where a run goes on after a loss that leaped: before the update that did it. The loop alone, without Ray and DeepSpeed."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from data_pipeline.artifacts import artifact
from data_pipeline.errors import TrainingError
from data_pipeline.feed.rank_feed import RankFeed
from data_pipeline.order.row_order import Phase, RowOrder, Stream
from ray_jobs.config.schema import EmbedConfig, PretrainConfig
from tests.unit.checkpoints.test_restore import Engine
from trainer.checkpoints import restore
from trainer.checkpoints.export_queue import ExportQueue
from trainer.checkpoints.state import RunState, Skip
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.train import RateChange, TrainConfig
from trainer.engine import changes
from trainer.engine.guards import ROLLBACK_MEMORY, WINDOW
from trainer.engine.loop import Training
from trainer.engine.process_group import TimeOut
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import step_of

EVERY = 20


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


class Loop(Training):
    """A run whose one weight is 0 until the update of planned step `harm`, from which on it is 1. The loss leaps `late` steps
    later."""

    def __init__(self, folder: Path, config: TrainConfig | None = None) -> None:
        config = config or TrainConfig(steps=10_000)
        self._is_first, self._engine = True, Engine()
        self._feed = RankFeed(rows=None, rank=0, world=1)  # type: ignore[arg-type]
        store = Store(str(folder / "checkpoints"), keep=3)
        self._run = SimpleNamespace(store=store, identity="a", config=config, progress=None)  # type: ignore[assignment]
        self._writer = CheckpointWriter(self._engine, store, Ledger(str(folder / "ledger"), 0))
        self._requests = SimpleNamespace(note_save=lambda: None)  # type: ignore[assignment]
        self.back: list[dict[str, Any]] = []
        self._journal = SimpleNamespace(write=self.note)  # type: ignore[assignment]
        self._exports = ExportQueue(config, store, str(folder), self._journal, None)
        self._time_out = TimeOut()
        self._restore()
        if not self._state.lineage:
            self._save(wait=True)

    def note(self, kind: str, **entry: Any) -> None:
        if kind == "back":
            self.back.append(entry)

    def train(self, until: int, harm: int, late: int) -> None:
        while (step := self._state.next_step) < until:
            self._feed = self._feed.with_skipped(self._state.skipped)
            planned = self._feed.order_step(step)
            self._engine.value = 1.0 if planned == harm else self._engine.value
            if self._engine.value and planned >= harm + late:
                return self._roll_back(step, "the loss rose")
            self._state.next_step = step + 1
            if self._state.next_step % EVERY == 0:
                self._save(wait=True)
        return None


@pytest.mark.parametrize("late", [0, 1, 19, 45, 60])
def test_an_update_that_is_older_than_the_newest_checkpoint_is_undone(tmp_path: Path, late: int) -> None:
    loop, harm = Loop(tmp_path), 210
    loop.train(400, harm, late)
    assert loop._engine.value == 0.0
    gone = loop.back[0]
    assert gone["step"] - 3 * WINDOW <= gone["next_step"] <= gone["step"] - WINDOW
    assert gone["first"] <= harm < gone["last"]
    usable = loop._run.store.usable()
    assert step_of(usable[0]) == gone["next_step"]
    again = restore.restore(Engine(1.0), loop._run.store, "a")  # as after a kill: with what is left out known
    assert again.skipped == ((gone["first"], gone["last"]),)
    loop.train(400, harm, late)
    assert loop._state.next_step == 400
    assert len(loop.back) == 1


def test_a_run_goes_farther_back_each_time_and_gives_up_at_the_fourth(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    for planned in (500, 505, 510):
        loop.train(1000, planned, 0)
    behind = [entry["step"] - entry["next_step"] for entry in loop.back]
    assert behind[0] >= WINDOW
    assert behind[1] >= 2 * WINDOW
    assert all(entry["last"] == planned + 1 for entry, planned in zip(loop.back, (500, 505, 510), strict=True))
    with pytest.raises(TrainingError, match="has gone back 3 times before, within 640 steps"):
        loop.train(1000, 515, 0)


def test_leaps_that_lie_far_apart_never_end_a_run(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    for number in range(1, 6):
        loop.train(10_000, number * (ROLLBACK_MEMORY + WINDOW), 0)
    assert len(loop.back) == 5
    assert len(loop._state.skips) == 5


@pytest.mark.parametrize(
    ("stages", "warmup", "leap", "back"),
    [((), (), 90, True), ((90,), (), 90, False), ((), (90,), 90, False), ((90,), (), 140, True), ((90,), (), 89, True)],
)
def test_a_loss_that_leaps_with_the_mixture_or_the_batch_is_no_spike(
    tmp_path: Path, stages, warmup, leap: int, back: bool
) -> None:  # type: ignore[no-untyped-def]
    """0.8 nats more from one step on, as where a harder language comes in, or as InfoNCE over twice as many pairs."""
    loop = Loop(tmp_path)
    plan = RowOrder(
        streams=(Stream(name="el", rows=10_000, weight=1.0),),
        batch=8,
        seed=1,
        stages=tuple(Phase(until=until, weights=(1.0,)) for until in stages),
        warmup=tuple((until, 4) for until in warmup),
    )
    loop._feed = RankFeed(rows=SimpleNamespace(order=plan), rank=0, world=1)  # type: ignore[arg-type]
    draw, wrong = random.Random(0), list[int]()
    for step in range(200):
        loss = draw.gauss(3.0 if step < leap else 3.8, 0.02)
        if loop._check_step(step, SimpleNamespace(is_applied=True, loss=loss)):  # type: ignore[arg-type]
            wrong.append(step)
            break
    assert wrong == ([leap] if back else [])


@pytest.mark.parametrize("advised", ["rate_changes", "spike"])
def test_a_run_that_gave_up_goes_on_by_what_its_error_advises(tmp_path: Path, advised: str) -> None:
    """Findings 7: what it had left out was stored, so that the same leap ended it again, whatever the user changed."""
    settings = {"steps": 2000, "spike": 10.0}
    loop = Loop(tmp_path, TrainConfig(**settings))
    for planned in (500, 505, 510):
        loop.train(1000, planned, 0)
    with pytest.raises(TrainingError) as given_up:
        loop.train(1000, 515, 0)
    newest = step_of(loop._state.lineage[-1])
    advice = f"train.rate_changes=[{{since: {newest}, factor: 0.5}}]"
    assert advice in str(given_up.value)
    assert "train.spike" in str(given_up.value)

    again = Loop(tmp_path, TrainConfig(**settings))
    with pytest.raises(TrainingError, match="has gone back 3 times before"):
        again.train(1000, 515, 0)
    other = {"spike": 20.0, "rate_changes": (RateChange(since=newest, factor=0.5),)}[advised]
    longer = Loop(tmp_path, TrainConfig(**settings | {advised: other}))
    assert longer._state.next_step == newest
    assert longer._state.changes[-1]["from_the_start"]
    longer.train(1000, 515, 0)
    assert len(longer.back) == 1


def test_a_run_keeps_a_record_of_what_was_changed_and_when() -> None:
    before = TrainConfig(warmup_steps=2, steps=40, schedule="wsd", decay_steps=8)
    state = RunState(next_step=30, settings=changes.adjustable_settings(before), skips=[Skip(3, 5, "leapt")])
    grown = TrainConfig(warmup_steps=2, steps=60, schedule="wsd", decay_steps=8, micro_batch=4, activation_checkpointing=True)
    change = changes.adopt_settings(state, grown)
    assert change == {"step": 30, "settings": {"steps": [40, 60], "micro_batch": [None, 4]}, "from_the_start": True}
    assert changes.describe(change) == "resumes at step 30 with steps 40 -> 60, micro_batch None -> 4"
    assert changes.adopt_settings(state, grown) is None
    assert state.skips[0].counts
    late = RunState(next_step=35, settings=changes.adjustable_settings(before))
    change = changes.adopt_settings(late, grown)
    assert change is not None
    assert not change["from_the_start"]
    assert "had the rates of the earlier settings" in changes.describe(change)
    with pytest.raises(TrainingError, match=r"has done 35 steps already, more than 20.*scion export"):
        changes.adopt_settings(late, TrainConfig(steps=20))
    assert late.changes == [change]


def test_what_cannot_change_a_result_is_no_part_of_its_identity() -> None:
    plain = PretrainConfig()
    other = TrainConfig(
        offload="optimizer", activation_checkpointing=True, compile=True, evaluate_steps=7, spike=0.0, micro_batch=3,
        checkpoint_steps=7, checkpoint_minutes=3.0, keep_checkpoints=9, keep_state=True, track=("tensorboard",), max_failures=1,
    )  # fmt: skip
    assert artifact.identity(plain) == artifact.identity(PretrainConfig(train=other))
    assert artifact.identity(plain) != artifact.identity(PretrainConfig(train=TrainConfig(learning_rate=1e-5)))
    free = artifact.adjustable_fields(EmbedConfig(), "embed")
    assert {name.rpartition(".")[2] for name in free} == {
        "steps", "micro_batch", "schedule", "decay_steps", "smallest_rate", "rate_changes", "export", "spike", "zero_stage"
    }  # fmt: skip
