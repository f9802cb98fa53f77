"""The training loop of one worker: take the next rows, make a step, evaluate, save. Task and config hold all that varies."""

import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from data_pipeline import keyed_random
from data_pipeline.artifacts import storage
from data_pipeline.feed.prefetch import DEPTH, prefetch
from data_pipeline.feed.rank_feed import RankFeed
from trainer.checkpoints.state import RunState
from trainer.collectives import from_every_rank, from_first_rank
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.collective_timer import CollectiveTimer
from trainer.deepspeed_bridge.initialize import row_norms
from trainer.deepspeed_bridge.trained_weights import trained_weights
from trainer.deepspeed_bridge.weight_average import averaged_weights
from trainer.engine import attempts, micro_batches, setup
from trainer.engine.attempts import Attempt
from trainer.engine.garbage import collect_garbage
from trainer.engine.passes import PASSES
from trainer.engine.passes.self_check import check_cached_gradient
from trainer.engine.process_group import TimeOut, dumps_found
from trainer.engine.recovery import Recovery
from trainer.engine.requests import Request, Requests
from trainer.engine.step import optimizer_step, set_rates
from trainer.engine.train_run import TrainRun
from trainer.ledger import ledger
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import new_name
from trainer.monitoring.journal import Journal
from trainer.monitoring.profiling import profiled
from trainer.monitoring.step_outcome import StepOutcome
from trainer.monitoring.stragglers import StragglerDetector, describe, own_seconds
from trainer.tasks.task import Batch


class Training:
    """One worker's part of a run."""

    def __init__(self, run: TrainRun, feed: RankFeed, attempt: Attempt) -> None:
        self._run, self._attempt, self._is_first = run, attempt, dist.get_rank() == 0
        feed, task = micro_batches.limit(run.uri, feed, run.task)
        self._feed, self._chunk_tokens = feed, task.chunk_tokens
        module: Any = partitioned.load_module(run.task, run.config)
        forward = setup.check_forward(module, run.config, run.task.length)
        micro, _ = feed.shape(0)
        # For the largest batch, whether or not the run gets there: a run that grows computes as one that was as long at first.
        accumulation = max(feed.shape(step)[1] for step in (0, *(until for until, _ in run.rows.order.warmup)))
        if task.passes != "direct":
            check_cached_gradient(run.config, PASSES[task.passes])
        self._engine = setup.make_engine(module, run.config, micro, accumulation)
        flops = module.flops()  # after the set-up has frozen weights
        self._slow_reasons = setup.slow_reasons(module, run.config)
        self._note_limits(micro)
        for line in [*module.slow_reasons(), *dumps_found(run.uri)]:
            self._note(line)
        self._forward = {**asdict(forward.path), "difference": forward.difference, "bound": forward.tolerance}
        self._collective_timer = CollectiveTimer()
        self._collate = task.collator()
        names = [stream.name for stream in run.rows.order.streams]
        self._streams = len(names)
        self._ledger = Ledger(storage.join(run.uri, ledger.FOLDER), dist.get_rank())
        self._journal = Journal(run.uri, run.identity, run.config, names, flops, self._note)
        self._requests = Requests(run.config, run.progress)
        self._stragglers = StragglerDetector(from_every_rank(socket.gethostname()))
        self._own_seconds = 0.0
        """Seconds of the last step that this rank needed by itself."""
        self._time_out = TimeOut()
        self._recovery = Recovery(
            run,
            self._engine,
            ledger=self._ledger,
            journal=self._journal,
            requests=self._requests,
            time_out=self._time_out,
            note=self._note,
        )
        self._exports = self._recovery.exports
        self._no_prefetch_before = 0
        """Earlier steps are prepared one by one."""

    @property
    def _state(self) -> RunState:
        return self._recovery.state

    def run(self) -> dict[str, Any]:
        """Trains to the end, or until the driver asks to stop."""
        steps, began = self._run.config.steps, time.perf_counter()
        self._recovery.restore()
        self._start(steps, round(time.perf_counter() - began, 3))
        while self._state.next_step < steps:
            self._evaluate()
            self._feed = self._feed.with_skipped(self._state.skipped)
            if self._train_steps():
                self._recovery.save(wait=True)
                self._exports.stop()
                self._journal.write("stopped", next_step=self._state.next_step)
                return {"stopped": self._state.next_step}
        self._time_out.set(self._run.config.first_step_minutes)
        self._evaluate()
        self._recovery.save_last()
        return self._export()

    def _start(self, steps: int, restore_seconds: float) -> None:
        """Checks that the attempt can make progress, logs its start and prepares the run's folder."""
        feed = self._feed.with_skipped(self._state.skipped)
        died = attempts.check_progress(self._attempt, feed, self._state.next_step, steps)
        self._no_prefetch_before = 0 if died is None else died + DEPTH + 1
        self._attempt.note_start()
        self._journal.write(
            "start",
            next_step=self._state.next_step,
            world=dist.get_world_size(),
            steps=steps,
            restore=restore_seconds,
            micro=feed.shape(self._state.next_step)[0],
            host=socket.gethostname(),
            pid=os.getpid(),
            slow=self._slow_reasons,
            forward=self._forward,
        )
        if self._is_first:
            self._run.rows.save(storage.join(self._run.uri, ledger.FOLDER, ledger.PLAN))
            # The history of a finished run that now grows.
            storage.remove(storage.join(self._run.uri, ledger.FOLDER, ledger.HISTORY))
        self._exports.resume(self._state.lineage)
        self._engine.train()
        if not self._state.lineage:  # finds a full disk or a folder without write access before the first step
            self._recovery.save(wait=True)

    def _train_steps(self) -> bool:
        """Trains; returns True for a stop, False at the end and after a rollback, which it has done."""
        began = time.perf_counter()
        for step, rows, batches in self._next_steps(self._state.next_step):
            waited = time.perf_counter() - began
            outcome = self._step(step, batches)
            seconds, communication = time.perf_counter() - began, self._collective_timer.take()
            self._journal.step(step, self._feed.order_step(step), outcome, waited, seconds, communication)
            self._own_seconds = own_seconds(seconds, waited, communication, outcome.seconds)
            self._time_out.set(self._run.config.collective_minutes)
            self._report_stragglers(outcome)
            if self._is_first:
                self._requests.report(step, outcome.loss)
            if failure := self._recovery.check_step(self._feed, step, outcome):
                self._recovery.roll_back(self._feed, step, failure)
                return False
            self._state.next_step = step + 1
            self._attempt.note_step()
            self._ledger.note(rows)
            collect_garbage(self._state.next_step)
            self._evaluate()
            if self._act_on_requests(outcome):
                return True
            began = time.perf_counter()
        return False

    def _next_steps(self, first: int) -> Iterator[tuple[int, pa.Table, list[Batch]]]:
        """The steps from `first` on, prefetched.

        After an attempt that died, each is prepared only when it is due, so that its step is known if it kills the workers
        again.
        """
        steps = self._prepare_steps(first)
        yield from itertools.islice(steps, max(0, self._no_prefetch_before - first))
        yield from prefetch(steps, DEPTH)

    def _prepare_steps(self, first: int) -> Iterator[tuple[int, pa.Table, list[Batch]]]:
        """The steps from `first` on: their rows, and those as micro-batches in page-locked memory where there is a GPU."""
        for step, rows in enumerate(self._feed.read_with_ray(first, self._run.config.steps), first):
            micro, count = self._feed.shape(step)
            batches = [self._collate(rows.slice(i * micro, micro)) for i in range(count)]
            yield step, rows, [batch.pin_memory() for batch in batches] if torch.cuda.is_available() else batches

    def _step(self, step: int, batches: list[Batch]) -> StepOutcome:
        """Sets the dropout seed and the learning rates, runs one optimizer step and returns its measurements."""
        # Dropout is keyed on the step: a run that was killed and resumed draws what it would have drawn.
        torch.manual_seed(keyed_random.key("dropout", self._run.rows.order.seed, step, dist.get_rank()) >> 1)
        set_rates(self._engine, self._run.config, step)
        requests = self._requests.due() if self._is_first else 0
        profile = profiled(self._run.uri, step, self._run.config.profile_steps, dist.get_rank())
        with self._halve_when_out_of_memory(step), profile:
            return optimizer_step(
                self._engine,
                batches,
                self._streams,
                requests,
                self._recovery.is_written,
                self._own_seconds,
                PASSES[self._run.task.passes],
            )

    def _halve_when_out_of_memory(self, step: int) -> AbstractContextManager[None]:
        """Around the computation of a step: the next attempt halves a micro-batch that does not fit."""
        uri, task = self._run.uri, self._run.task
        if self._chunk_tokens is not None:
            return micro_batches.halve_when_out_of_memory(uri, task.chunk_tokens, self._chunk_tokens, smallest=task.length)
        micro, _ = self._feed.shape(step)
        return micro_batches.halve_when_out_of_memory(uri, self._run.rows.micro_batch, micro)

    def _report_stragglers(self, outcome: StepOutcome) -> None:
        if self._is_first and (finding := self._stragglers.note(outcome.own_seconds)) is not None:
            self._journal.write("straggler", **finding)
            self._note(describe(finding))

    def _note_limits(self, micro: int) -> None:
        """Tells the user of micro-batches that an earlier attempt had to halve."""
        run = self._run
        if micro != run.rows.micro_batch_of(0, self._feed.world):
            self._note(f"micro_batch is {micro}: more rows do not fit the memory")
        if self._chunk_tokens != run.task.chunk_tokens:
            self._note(f"chunk_tokens is {self._chunk_tokens}: more tokens do not fit the memory")

    def _note(self, line: str) -> None:
        """Shows the user a line, once."""
        if self._is_first and self._run.progress is not None:
            self._run.progress.note.remote(line)

    def _act_on_requests(self, outcome: StepOutcome) -> bool:
        """Acts on what the first rank requested in this step; returns whether to stop."""
        self._exports.poll()
        if outcome.ranks_written == dist.get_world_size():
            self._recovery.finish_save(wait=False)
        if outcome.requests & Request.CHECK_PREEMPTION and self._requests.is_preempted():
            self._journal.write("preempted", next_step=self._state.next_step)
            self._recovery.save(wait=True)
        elif outcome.requests & Request.SAVE or self._run.config.is_checkpoint_due(self._state.next_step):
            self._recovery.save(wait=False)
        return bool(outcome.requests & Request.STOP)

    def _evaluate(self) -> None:
        """Scores the held-out data where an evaluation is due and an earlier attempt has not made it."""
        state, run = self._state, self._run
        done = str(state.next_step)
        if run.heldout is not None and run.config.is_evaluation_due(state.next_step) and done not in state.evaluations:
            with averaged_weights(self._engine):
                scores = run.heldout.score(self._engine, dist.get_rank(), dist.get_world_size())
                norms = row_norms(self._engine, run.row_groups, run.config.zero_stage)
            state.evaluations[done] = scores[run.heldout.measure]
            self._journal.write("evaluation", step=state.next_step, row_norms=norms, **scores)

    def _export(self) -> dict[str, Any]:
        """Writes the trained model, and the last segment of the ledger."""
        name = from_first_rank(lambda: new_name(self._state.next_step, dist.get_world_size()))
        self._ledger.write(name, self._ledger.take())
        run = self._run
        with averaged_weights(self._engine), trained_weights(self._engine, run.config, run.store.uri) as weights:
            if self._is_first:
                run.store.check_lease()
                adapters = {} if run.config.lora is None else {"lora": run.config.lora}
                run.task.export(weights, run.export_uri, run.config.frozen, **adapters)
        if self._is_first:
            history = {"lineage": [*self._state.lineage, name], "skipped": self._state.skipped, "steps": self._state.next_step}
            self._ledger.finish(history)
        self._exports.finish()
        self._journal.write("finished", next_step=self._state.next_step)
        dist.barrier()
        devices = dict(Counter(from_every_rank(setup.device_name())))
        return {"evaluations": self._state.evaluations, "changes": self._state.changes, "devices": devices}
