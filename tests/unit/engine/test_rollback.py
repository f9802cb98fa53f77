"""A run whose loss jumps resumes before the update that caused it. `Recovery` alone, without Ray and DeepSpeed."""

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
from ray_jobs.config.embedders import EmbedConfig
from ray_jobs.config.schema import PretrainConfig
from tests.unit.checkpoints.test_restore import Engine
from trainer.checkpoints import restore
from trainer.checkpoints.state import RunState, Skip
from trainer.checkpoints.store import Store
from trainer.config.train import RateChange, TrainConfig
from trainer.engine import changes
from trainer.engine.guards import ROLLBACK_MEMORY, WINDOW
from trainer.engine.process_group import TimeOut
from trainer.engine.recovery import Recovery
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import step_of

EVERY = 20


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


class MemoryJournal:
    """Keeps the entries on rollbacks."""

    def __init__(self) -> None:
        self.rollbacks: list[dict[str, Any]] = []

    def write(self, kind: str, **entry: Any) -> None:
        if kind == "back":
            self.rollbacks.append(entry)


class Loop:
    """A run whose weight is 0 until the update of order step `harm`, which makes it 1. The loss rises `late` steps later."""

    def __init__(self, folder: Path, config: TrainConfig | None = None) -> None:
        self.engine, self.store, journal = Engine(), Store(str(folder / "checkpoints"), keep=3), MemoryJournal()
        config = config or TrainConfig(steps=10_000)
        run: Any = SimpleNamespace(store=self.store, identity="a", config=config, progress=None, uri=str(folder))
        self.recovery = Recovery(
            run,
            self.engine,
            ledger=Ledger(str(folder / "ledger"), 0),
            journal=journal,  # type: ignore[arg-type]
            requests=SimpleNamespace(note_save=lambda: None),  # type: ignore[arg-type]
            time_out=TimeOut(),
            note=lambda line: None,
        )
        self.rollbacks = journal.rollbacks
        self.recovery.restore()
        if not self.state.lineage:
            self.recovery.save(wait=True)

    @property
    def state(self) -> RunState:
        return self.recovery.state

    def train(self, until: int, harm: int, late: int) -> None:
        while (step := self.state.next_step) < until:
            feed = RankFeed(rows=None, rank=0, world=1, skipped=self.state.skipped)  # type: ignore[arg-type]
            order_step = feed.order_step(step)
            self.engine.value = 1.0 if order_step == harm else self.engine.value
            if self.engine.value and order_step >= harm + late:
                self.recovery.roll_back(feed, step, "the loss rose")
                return
            self.state.next_step = step + 1
            if self.state.next_step % EVERY == 0:
                self.recovery.save(wait=True)


@pytest.mark.parametrize("late", [0, 1, 19, 45, 60])
def test_an_update_that_is_older_than_the_newest_checkpoint_is_undone(tmp_path: Path, late: int) -> None:
    loop, harm = Loop(tmp_path), 210
    loop.train(400, harm, late)
    assert loop.engine.value == 0.0
    rollback = loop.rollbacks[0]
    assert rollback["step"] - 3 * WINDOW <= rollback["next_step"] <= rollback["step"] - WINDOW
    assert rollback["first"] <= harm < rollback["last"]
    usable = loop.store.usable()
    assert step_of(usable[0]) == rollback["next_step"]
    restored = restore.restore(Engine(1.0), loop.store, "a")  # as after a kill
    assert restored.skipped == ((rollback["first"], rollback["last"]),)
    loop.train(400, harm, late)
    assert loop.state.next_step == 400
    assert len(loop.rollbacks) == 1


def test_a_run_rolls_back_farther_each_time_and_gives_up_at_the_fourth(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    for planned in (500, 505, 510):
        loop.train(1000, planned, 0)
    distances = [entry["step"] - entry["next_step"] for entry in loop.rollbacks]
    assert distances[0] >= WINDOW
    assert distances[1] >= 2 * WINDOW
    assert all(entry["last"] == planned + 1 for entry, planned in zip(loop.rollbacks, (500, 505, 510), strict=True))
    with pytest.raises(TrainingError, match="has gone back 3 times before, within 640 steps"):
        loop.train(1000, 515, 0)


def test_rollbacks_that_lie_far_apart_never_end_a_run(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    for number in range(1, 6):
        loop.train(10_000, number * (ROLLBACK_MEMORY + WINDOW), 0)
    assert len(loop.rollbacks) == 5
    assert len(loop.state.skips) == 5


@pytest.mark.parametrize(
    ("stages", "warmup", "jump", "rolls_back"),
    [((), (), 90, True), ((90,), (), 90, False), ((), (90,), 90, False), ((90,), (), 140, True), ((90,), (), 89, True)],
)
def test_a_loss_that_jumps_with_the_mixture_or_the_batch_is_no_spike(
    tmp_path: Path, stages, warmup, jump: int, rolls_back: bool
) -> None:  # type: ignore[no-untyped-def]
    """0.8 nats more from one step on: a harder language joins the mixture, or InfoNCE gets twice as many pairs."""
    loop = Loop(tmp_path)
    order = RowOrder(
        streams=(Stream(name="el", rows=10_000, weight=1.0),),
        batch=8,
        seed=1,
        stages=tuple(Phase(until=until, weights=(1.0,)) for until in stages),
        warmup=tuple((until, 4) for until in warmup),
    )
    feed = RankFeed(rows=SimpleNamespace(order=order), rank=0, world=1)  # type: ignore[arg-type]
    draw, wrong = random.Random(0), list[int]()
    for step in range(200):
        loss = draw.gauss(3.0 if step < jump else 3.8, 0.02)
        if loop.recovery.check_step(feed, step, SimpleNamespace(is_applied=True, loss=loss)):  # type: ignore[arg-type]
            wrong.append(step)
            break
    assert wrong == ([jump] if rolls_back else [])


@pytest.mark.parametrize("advised", ["rate_changes", "spike"])
def test_a_run_that_gave_up_resumes_with_the_settings_that_its_error_advises(tmp_path: Path, advised: str) -> None:
    """The checkpoint holds the rollbacks: the same jump ended the run again, whatever the user changed."""
    settings = {"steps": 2000, "spike": 10.0}
    loop = Loop(tmp_path, TrainConfig(**settings))
    for planned in (500, 505, 510):
        loop.train(1000, planned, 0)
    with pytest.raises(TrainingError) as given_up:
        loop.train(1000, 515, 0)
    newest = step_of(loop.state.lineage[-1])
    advice = f"train.rate_changes=[{{since: {newest}, factor: 0.5}}]"
    assert advice in str(given_up.value)
    assert "train.spike" in str(given_up.value)

    again = Loop(tmp_path, TrainConfig(**settings))
    with pytest.raises(TrainingError, match="has gone back 3 times before"):
        again.train(1000, 515, 0)
    other = {"spike": 20.0, "rate_changes": (RateChange(since=newest, factor=0.5),)}[advised]
    longer = Loop(tmp_path, TrainConfig(**settings | {advised: other}))
    assert longer.state.next_step == newest
    assert longer.state.changes[-1]["from_the_start"]
    longer.train(1000, 515, 0)
    assert len(longer.rollbacks) == 1


def test_a_run_records_which_settings_changed_and_when() -> None:
    before = TrainConfig(warmup_steps=2, steps=40, schedule="wsd", decay_steps=8)
    state = RunState(next_step=30, settings=changes.adjustable_settings(before), skips=[Skip(3, 5, "the loss rose")])
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


def test_settings_that_cannot_change_a_result_are_not_in_its_identity() -> None:
    plain = PretrainConfig()
    other = TrainConfig(
        offload="optimizer",
        activation_checkpointing=True,
        compile=True,
        evaluate_steps=7,
        spike=0.0,
        micro_batch=3,
        checkpoint_steps=7,
        checkpoint_minutes=3.0,
        keep_checkpoints=9,
        keep_state=True,
        track=("tensorboard",),
        max_failures=1,
    )
    assert artifact.identity(plain) == artifact.identity(PretrainConfig(train=other))
    assert artifact.identity(plain) != artifact.identity(PretrainConfig(train=TrainConfig(learning_rate=1e-5)))
    free = artifact.adjustable_fields(EmbedConfig(), "embed")
    assert {name.rpartition(".")[2] for name in free} == {
        "steps",
        "micro_batch",
        "schedule",
        "decay_steps",
        "smallest_rate",
        "rate_changes",
        "export",
        "spike",
        "zero_stage",
    }
