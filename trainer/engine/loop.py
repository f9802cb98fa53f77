"""The training loop of one worker: next rows, step, save. All that varies is in task and config."""

import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.artifacts import storage
from data_pipeline.errors import TrainingError
from data_pipeline.feed.prefetch import DEPTH, prefetch
from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from trainer.checkpoints import restore
from trainer.checkpoints.export_queue import ExportQueue
from trainer.checkpoints.node_copy import node_copy, reads_all
from trainer.checkpoints.restore import RunState, Skip
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import CheckpointWriter, SaveResult
from trainer.collectives import failure_on_any_rank, from_every_rank, from_first_rank
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.collective_timer import CollectiveTimer
from trainer.deepspeed_bridge.trained_weights import trained_weights
from trainer.deepspeed_bridge.weight_average import averaged_weights
from trainer.engine import attempts, changes, guards, micro_batches, setup
from trainer.engine.attempts import Attempt
from trainer.engine.garbage import collect_garbage, manual_collection
from trainer.engine.process_group import TimeOut, dumps_found
from trainer.engine.requests import Request, Requests
from trainer.engine.step import StepOutcome, optimizer_step, set_rates
from trainer.ledger import ledger
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import new_name, step_of
from trainer.monitoring.journal import Journal
from trainer.monitoring.profiling import profiled
from trainer.monitoring.stragglers import StragglerDetector, describe, own_seconds
from trainer.tasks.heldout_pairs import HeldoutPairs
from trainer.tasks.heldout_text import HeldoutText
from trainer.tasks.task import Batch, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """Everything that a worker is told."""

    task: Task
    config: TrainConfig
    rows: OrderedRows
    heldout: HeldoutText | HeldoutPairs | None
    row_groups: dict[str, NDArray[np.int64]]
    """Rows of the embeddings whose norms are watched, by the group's name."""
    uri: str
    """The run's folder; the trained model comes to `export_uri`."""
    export_uri: str
    store: Store
    identity: str
    threads: int
    progress: Any
    """Handle of the driver's progress actor, or None."""


def train_worker(run: TrainRun) -> dict[str, Any]:
    """Runs on every worker of Ray Train. Returns how it ended, the same on every rank: `{"stopped": step}`, `{"error": ...}`,
    or `{"evaluations": ..., "changes": ..., "devices": ...}`."""
    if not torch.cuda.is_available():
        torch.set_num_threads(run.threads)
    with attempts.attempt(run.uri, run.store.lease) as attempt:
        if attempt.error is not None:
            return {"error": attempt.error}
        with with_local_model(run.task) as task:
            training = Training(replace(run, task=task), ray.train.get_dataset_shard("train"), attempt)
            with manual_collection():
                return training.run()


@contextmanager
def with_local_model(task: Task) -> Iterator[Any]:
    """The task with its model on this machine's disk, to which each file comes once; every rank calls it."""
    uri: str | None = getattr(task, "model_uri", None)
    if uri is None or storage.is_local(uri):
        yield task
        return
    with node_copy(uri, reads_all) as folder:
        yield replace(task, model_uri=folder)  # type: ignore[type-var]


class Training:
    """One worker's part of a run."""

    def __init__(self, run: TrainRun, feed: RankFeed, attempt: Attempt) -> None:
        self._feed = feed = micro_batches.limit_micro_batch(run.uri, feed)
        self._run, self._first = run, dist.get_rank() == 0
        self._attempt = attempt
        module: Any = partitioned.module_of(run.task, run.config)
        forward = setup.check_forward(module, run.config, run.task.length)
        micro, _ = feed.shape(0)
        # Of the largest batch, whether or not the run gets there: a run that grows computes as one that was as long at first.
        accumulation = max(feed.shape(step)[1] for step in (0, *(until for until, _ in run.rows.order.warmup)))
        self._engine = setup.make_engine(module, run.config, micro, accumulation)
        flops = module.flops()  # now that it is known what learns
        self._slow = setup.slow_reasons(module, run.config)
        if micro != run.rows.micro_batch_of(0, feed.world):
            self._note(f"{micro} rows at once (micro_batch): there was no memory for more")
        for line in [*module.slow_reasons(), *dumps_found(run.uri)]:
            self._note(line)
        self._forward = {**asdict(forward.path), "difference": forward.difference, "bound": forward.tolerance}
        self._waiting = CollectiveTimer()
        self._collate = run.task.collator()
        self._streams = len(run.rows.order.streams)
        self._ledger = Ledger(storage.join(run.uri, ledger.FOLDER), dist.get_rank())
        names = [stream.name for stream in run.rows.order.streams]
        self._journal = Journal(run.uri, run.identity, run.config, names, flops, self._note)
        self._exports = ExportQueue(run.config, run.store, run.uri, self._journal, run.progress)
        self._saver = CheckpointWriter(self._engine, run.store, self._ledger, lambda: self._exports.reading)
        self._wishes = Requests(run.config, run.progress)
        self._stragglers = StragglerDetector(from_every_rank(socket.gethostname()))
        self._own = 0.0
        """Seconds of the last step that this rank needed by itself."""
        self._time_out = TimeOut()
        self._state = RunState()
        self._careful = 0
        """Steps before this one are not prepared ahead."""

    def run(self) -> dict[str, Any]:
        """Trains to the end, or until it is told to stop."""
        steps, began = self._run.config.steps, time.perf_counter()
        self._restore()
        seconds = round(time.perf_counter() - began, 3)
        feed = self._feed.with_skipped(self._state.skipped)
        died = attempts.check_progress(self._attempt, feed, self._state.next_step, steps)
        self._careful = 0 if died is None else died + DEPTH + 1
        self._attempt.note_start()
        self._journal.write(
            "start", next_step=self._state.next_step, world=dist.get_world_size(), steps=steps, restore=seconds,
            micro=feed.shape(self._state.next_step)[0],
            host=socket.gethostname(), pid=os.getpid(), slow=self._slow, forward=self._forward,
        )  # fmt: skip
        if self._first:
            self._run.rows.save(storage.join(self._run.uri, ledger.FOLDER, ledger.PLAN))
            storage.remove(storage.join(self._run.uri, ledger.FOLDER, ledger.HISTORY))  # of a run that ended and goes on
        self._exports.resume(self._state.lineage)
        self._engine.train()
        if not self._state.lineage:  # a disk that is full or a folder that cannot be written is known before the first step
            self._save(wait=True)
        while self._state.next_step < steps:
            self._evaluate()
            self._feed = self._feed.with_skipped(self._state.skipped)
            if self._steps():
                self._save(wait=True)
                self._exports.stop()
                self._journal.write("stopped", next_step=self._state.next_step)
                return {"stopped": self._state.next_step}
        self._time_out.set(self._run.config.first_step_minutes)
        self._evaluate()
        self._save_end()
        return self._export()

    def _restore(self, at_most: int | None = None) -> None:
        """Loads a checkpoint and goes on under the present settings."""
        self._time_out.set(self._run.config.first_step_minutes)
        self._state = restore.restore(self._engine, self._run.store, self._run.identity, at_most)
        if change := changes.adopt_settings(self._state, self._run.config):
            self._journal.write("changed", **change)
            self._note(changes.describe(change))

    def _steps(self) -> bool:
        """Trains until the end, or until the run has gone back; whether it is to stop."""
        began = time.perf_counter()
        for step, rows, batches in self._coming(self._state.next_step):
            waited = time.perf_counter() - began
            outcome = self._step(step, batches)
            seconds, communication = time.perf_counter() - began, self._waiting.take()
            self._journal.step(step, self._feed.order_step(step), outcome, waited, seconds, communication)
            self._own = own_seconds(seconds, waited, communication, outcome.seconds)
            self._time_out.set(self._run.config.collective_minutes)
            self._watch(outcome)
            if self._first:
                self._wishes.report(step, outcome.loss)
            if wrong := self._wrong(step, outcome):
                self._go_back(step, wrong)
                return False
            self._state.next_step = step + 1
            self._attempt.note_step()
            self._ledger.note(rows)
            collect_garbage(self._state.next_step)
            self._evaluate()
            if self._heed(outcome):
                return True
            began = time.perf_counter()
        return False

    def _coming(self, first: int) -> Iterator[tuple[int, pa.Table, list[Batch]]]:
        """The prepared steps from `first` on, made ahead; but where the attempt before died, each only when it is due, so that
        what kills the workers is known by its step."""
        steps = self._prepared(first)
        yield from itertools.islice(steps, max(0, self._careful - first))
        yield from prefetch(steps, DEPTH)

    def _prepared(self, first: int) -> Iterator[tuple[int, pa.Table, list[Batch]]]:
        """The steps from `first` on with their rows, and those as micro-batches where the device can fetch them."""
        for step, rows in enumerate(self._feed.read_with_ray(first, self._run.config.steps), first):
            micro, count = self._feed.shape(step)
            batches = [self._collate(rows.slice(i * micro, micro)) for i in range(count)]
            yield step, rows, [batch.pin_memory() for batch in batches] if torch.cuda.is_available() else batches

    def _step(self, step: int, batches: list[Batch]) -> StepOutcome:
        # Dropout is keyed on the step, so that a run that was killed and goes on draws what it would have drawn.
        torch.manual_seed(keyed_random.key("dropout", self._run.rows.order.seed, step, dist.get_rank()) >> 1)
        set_rates(self._engine, self._run.config, step)
        wishes = self._wishes.due() if self._first else 0
        profile = profiled(self._run.uri, step, self._run.config.profile_steps, dist.get_rank())
        with self._halving(step), profile:
            return optimizer_step(self._engine, batches, self._streams, wishes, self._saver.is_written, self._own)

    def _halving(self, step: int) -> AbstractContextManager[None]:
        """Around the computation of a step: half as many rows at once next time, if there was no memory for them."""
        if not self._run.task.divisible:
            return nullcontext()
        return micro_batches.halve_when_out_of_memory(self._run.uri, self._run.rows.micro_batch, self._feed.shape(step)[0])

    def _watch(self, outcome: StepOutcome) -> None:
        """Says which rank the others wait for."""
        if self._first and (finding := self._stragglers.note(outcome.own)) is not None:
            self._journal.write("straggler", **finding)
            self._note(describe(finding))

    def _note(self, line: str) -> None:
        """Shows the user a line, once."""
        if self._first and self._run.progress is not None:
            self._run.progress.note.remote(line)

    def _wrong(self, step: int, outcome: StepOutcome) -> str:
        """Why the run must go back, or nothing. Keeps the window of losses."""
        state, threshold = self._state, self._run.config.spike
        before, now = self._feed.order_step(step - 1) if step else 0, self._feed.order_step(step)
        state.recent = guards.comparable_losses(state.recent, before, now, self._feed.rows.order.change_steps)
        state.refused = 0 if outcome.applied else state.refused + 1
        if state.refused >= guards.MAX_REFUSED:
            return f"loss or gradient were not finite in {state.refused} steps in a row"
        if not outcome.applied:
            return ""
        z = guards.spike_score(outcome.loss, state.recent)
        if threshold and z > threshold:
            return f"the loss rose to {outcome.loss:.4g}, {z:.1f} robust standard deviations above the median"
        state.recent = [*state.recent, outcome.loss][-guards.WINDOW :]
        return ""

    def _go_back(self, step: int, why: str) -> None:
        """Restores a checkpoint from before what led here and leaves those rows out.

        Raises:
            TrainingError: the run has gone back too often.
            OSError: the storage fails.
        """
        planned, done, store = self._feed.order_step(step), self._state.skips, self._run.store
        self._saved(self._saver.finish(self._state))
        self._saver.forget()
        before = guards.rollbacks_near([(skip.first, skip.last) for skip in done if skip.counts], planned)
        if before >= guards.MAX_ROLLBACKS:
            raise TrainingError(
                f"{why}; the run has gone back {before} times before, within {guards.ROLLBACK_MEMORY} steps.",
                f"step {step}",
                f"Go on with train.rate_changes=[{{since: {step_of(self._state.lineage[-1])}, factor: 0.5}}], which halves the "
                "learning rates from there on, or with a higher train.spike (0 switches it off); or look at the rows of the "
                "steps that the log names.",
            )
        self._restore(guards.rollback_step(step, before))
        first, last = guards.steps_to_skip(self._feed.order_step(self._state.next_step), planned, self._feed.skipped)
        self._state.skips = sorted([*done, Skip(first, last, why)], key=lambda skip: skip.first)
        self._state.refused = 0
        self._journal.write("back", step=step, next_step=self._state.next_step, first=first, last=last, why=why)
        self._save(wait=True)
        if wrong := failure_on_any_rank(lambda: store.mark_abandoned(self._state.next_step) if self._first else None):
            raise OSError(f"checkpoints that the run went back before could not be marked ({wrong}).")

    def _heed(self, outcome: StepOutcome) -> bool:
        """Does what the first rank wished for in this step; whether to stop."""
        self._exports.poll()
        if outcome.written == dist.get_world_size():
            self._saved(self._saver.finish(self._state, wait=False))
        if outcome.wishes & Request.LOOK and self._wishes.is_preempted():
            self._journal.write("preempted", next_step=self._state.next_step)
            self._save(wait=True)
        elif outcome.wishes & Request.SAVE or self._run.config.is_checkpoint_due(self._state.next_step):
            self._save(wait=False)
        return bool(outcome.wishes & Request.STOP)

    def _save(self, wait: bool) -> None:
        self._saved(self._saver.finish(self._state))
        self._saver.begin(self._state)
        self._wishes.note_save()
        if wait:
            self._saved(self._saver.finish(self._state))

    def _save_end(self) -> None:
        """A checkpoint after the last step, unless there is one: an export that fails is repeated without training again."""
        self._saved(self._saver.finish(self._state))
        if not self._state.lineage or step_of(self._state.lineage[-1]) < self._state.next_step:
            self._save(wait=True)

    def _saved(self, saved: SaveResult | None) -> None:
        if saved is not None and saved.failure:
            self._journal.write("missed", why=saved.failure)
        elif saved is not None:
            self._journal.write("checkpoint", name=saved.name, next_step=saved.step, seconds=saved.seconds)
            self._exports.add(saved.name)
            if saved.prune_failure:
                self._journal.write("not pruned", why=saved.prune_failure)

    def _evaluate(self) -> None:
        """Scores held-out text or pairs where the settings say so, unless a run before the kill has."""
        state, run = self._state, self._run
        done = str(state.next_step)
        if run.heldout is not None and run.config.is_evaluation_due(state.next_step) and done not in state.evaluations:
            with averaged_weights(self._engine):
                scores = run.heldout.score(self._engine, dist.get_rank(), dist.get_world_size())
                norms = setup.row_norms(self._engine, run.row_groups, run.config.zero_stage)
            state.evaluations[done] = scores[run.heldout.measure]
            self._journal.write("evaluation", step=state.next_step, row_norms=norms, **scores)

    def _export(self) -> dict[str, Any]:
        """The trained model, and what the rows since the last checkpoint were."""
        name = from_first_rank(lambda: new_name(self._state.next_step, dist.get_world_size()))
        self._ledger.write(name, self._ledger.take())
        run = self._run
        with averaged_weights(self._engine), trained_weights(self._engine, run.config, run.store.uri) as weights:
            if self._first:
                run.store.check_lease()
                adapters = {} if run.config.lora is None else {"lora": run.config.lora}
                run.task.export(weights, run.export_uri, run.config.frozen, **adapters)
        if self._first:
            history = {"lineage": [*self._state.lineage, name], "skipped": self._state.skipped, "steps": self._state.next_step}
            self._ledger.finish(history)
        self._exports.finish()
        self._journal.write("finished", next_step=self._state.next_step)
        dist.barrier()
        ended = {"evaluations": self._state.evaluations, "changes": self._state.changes}
        return ended | {"devices": dict(Counter(from_every_rank(setup.device_name())))}
