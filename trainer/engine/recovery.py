"""Saves a run's state, restores it, and rolls the run back before an update that harmed it."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from data_pipeline.errors import TrainingError
from data_pipeline.feed.rank_feed import RankFeed
from trainer.checkpoints import restore
from trainer.checkpoints.export_queue import ExportQueue
from trainer.checkpoints.state import RunState, Skip
from trainer.checkpoints.writer import CheckpointWriter
from trainer.collectives import failure_on_any_rank
from trainer.engine import changes, guards
from trainer.engine.process_group import TimeOut
from trainer.engine.requests import Requests
from trainer.engine.train_run import TrainRun
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import step_of
from trainer.monitoring.journal import Journal
from trainer.monitoring.step_outcome import StepOutcome


class Recovery:
    """The state of a run on one rank, and its checkpoints. Every rank calls each method."""

    def __init__(
        self,
        run: TrainRun,
        engine: Any,
        *,
        ledger: Ledger,
        journal: Journal,
        requests: Requests,
        time_out: TimeOut,
        note: Callable[[str], None],
    ) -> None:
        """`note` shows the user a line."""
        self.state = RunState()
        self.exports = ExportQueue(run.config, run.store, run.uri, journal, run.progress)
        self._run, self._engine = run, engine
        self._writer = CheckpointWriter(engine, run.store, ledger, lambda: self.exports.reading)
        self._journal, self._requests, self._time_out, self._note = journal, requests, time_out, note

    @property
    def is_written(self) -> bool:
        """Whether this rank has written its part of the checkpoint: `finish_save` would not wait for it."""
        return self._writer.is_written

    def restore(self, at_most: int | None = None) -> None:
        """Loads a checkpoint and continues under the present settings."""
        self._time_out.set(self._run.config.first_step_minutes)
        self.state = restore.restore(self._engine, self._run.store, self._run.identity, at_most)
        if change := changes.adopt_settings(self.state, self._run.config):
            self._journal.write("changed", **change)
            self._note(changes.describe(change))

    def save(self, wait: bool) -> None:
        """Saves a checkpoint; writes it in the background unless `wait`."""
        self.finish_save()
        self._writer.begin(self.state)
        self._requests.note_save()
        if wait:
            self.finish_save()

    def save_last(self) -> None:
        """Saves after the last step, unless a checkpoint is there: a failed export is repeated without training again."""
        self.finish_save()
        if not self.state.lineage or step_of(self.state.lineage[-1]) < self.state.next_step:
            self.save(wait=True)

    def finish_save(self, wait: bool = True) -> None:
        """Commits the checkpoint being written, as `CheckpointWriter.finish`; logs how it ended and queues its export."""
        result = self._writer.finish(self.state, wait=wait)
        if result is not None and result.failure:
            self._journal.write("missed", why=result.failure)
        elif result is not None:
            self._journal.write("checkpoint", name=result.name, next_step=result.step, seconds=result.seconds)
            self.exports.add(result.name)
            if result.prune_failure:
                self._journal.write("not pruned", why=result.prune_failure)

    def check_step(self, feed: RankFeed, step: int, outcome: StepOutcome) -> str:
        """Why the run must roll back; empty if it need not. Keeps the window of losses."""
        state, threshold = self.state, self._run.config.spike
        before, now = feed.order_step(step - 1) if step else 0, feed.order_step(step)
        state.recent = guards.comparable_losses(state.recent, before, now, feed.rows.order.change_steps)
        state.refused = 0 if outcome.is_applied else state.refused + 1
        if state.refused >= guards.MAX_REFUSED:
            return f"loss or gradient were not finite in {state.refused} steps in a row"
        if not outcome.is_applied:
            return ""
        score = guards.spike_score(outcome.loss, state.recent)
        if threshold and score > threshold:
            return f"the loss rose to {outcome.loss:.4g}, {score:.1f} robust standard deviations above the median"
        state.recent = [*state.recent, outcome.loss][-guards.WINDOW :]
        return ""

    def roll_back(self, feed: RankFeed, step: int, why: str) -> None:
        """Restores an earlier checkpoint and skips the rows that led to the failure.

        Raises:
            TrainingError: the run has rolled back too often.
            OSError: the storage fails.
        """
        failed, done, store = feed.order_step(step), self.state.skips, self._run.store
        self.finish_save()
        self._writer.forget()
        before = guards.rollbacks_near([(skip.first, skip.last) for skip in done if skip.counts], failed)
        if before >= guards.MAX_ROLLBACKS:
            raise TrainingError(
                f"{why}; the run has gone back {before} times before, within {guards.ROLLBACK_MEMORY} steps.",
                f"step {step}",
                f"Set train.rate_changes=[{{since: {step_of(self.state.lineage[-1])}, factor: 0.5}}], which halves the "
                "learning rates from there on, or a higher train.spike (0 switches it off); or look at the rows of the "
                "steps that the log names.",
            )
        self.restore(guards.rollback_step(step, before))
        first, last = guards.steps_to_skip(feed.order_step(self.state.next_step), failed, feed.skipped)
        self.state.skips = sorted([*done, Skip(first, last, why)], key=lambda skip: skip.first)
        self.state.refused = 0
        self._journal.write("back", step=step, next_step=self.state.next_step, first=first, last=last, why=why)
        self.save(wait=True)

        def abandon() -> None:
            if dist.get_rank() == 0:
                store.mark_abandoned(self.state.next_step)

        if failure := failure_on_any_rank(abandon):
            raise OSError(f"checkpoints that the run went back before could not be marked ({failure}).")
