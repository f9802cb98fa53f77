"""Training without Ray: ranks are plain processes with gloo, forked from a server that has imported DeepSpeed once.

Under Ray Train a training costs 18 seconds of CPU before its first step, nearly all of them imports. What a test says about the
engine holds for these ranks as well; what it says about Ray needs `trainer.engine.launch.fit`.
"""

import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from data_pipeline.errors import ScionError, TrainingError
from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from trainer.checkpoints.store import Store
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.engine import attempts, launch, loop
from trainer.engine.loop import Training
from trainer.engine.requests import Request
from trainer.engine.train_run import TrainRun

_LONGEST_SECONDS = 120


def on_ranks(world: int, do: Callable[..., Any], *arguments: Any) -> Any:
    """What `do` gives on rank 0 of `world` ranks."""
    codes, result = _run(world, do, *arguments)
    assert codes == [0] * world
    return result


def train_run(task: Any, config: TrainConfig, rows: OrderedRows, folder: str, **others: Any) -> TrainRun:
    """A run in a folder, without held-out data and progress unless `others` has them."""
    defaults = {"heldout": None, "row_groups": {}, "identity": "x", "threads": 1, "progress": None}
    return TrainRun(
        task=task,
        config=config,
        rows=rows,
        uri=folder,
        export_uri=f"{folder}/model",
        store=Store(f"{folder}/checkpoints", 3),
        **defaults | others,
    )


def fit(run: TrainRun, *, workers: int, stop: int | None = None) -> dict[str, Any]:
    """`launch.fit` without Ray: each rank reads its own rows, and when one dies all are started anew. The driver says stop from
    step `stop` on."""
    attempts.begin(run.uri)
    for _ in range(1 + run.config.max_failures):
        codes, ended = _run(workers, _train, replace(run, progress=None), stop)
        if codes == [0] * workers:
            return launch.conclude(run, ended)
    raise ended if isinstance(ended, ScionError) else TrainingError(f"ranks died: {codes}", run.uri)


class _LocalFeed(RankFeed):
    """Reads in this process what Ray Data would."""

    def read_with_ray(self, first: int, last: int) -> Iterator[pa.Table]:
        return self.read_local(first, last)


class _StopAt:
    """In place of `loop.Requests`: the driver says stop from a step on, and no node is about to go."""

    def __init__(self, stop: int | None) -> None:
        self._stop, self._done = stop, 0

    def due(self) -> int:
        return int(Request.STOP if self._stop is not None and self._done >= self._stop else 0)

    def report(self, step: int, loss: float) -> None:
        self._done = step + 1

    def note_save(self) -> None: ...


def _train(run: TrainRun, stop: int | None) -> dict[str, Any]:
    loop.Requests = lambda *arguments: _StopAt(stop)  # type: ignore[assignment, misc]
    torch.set_num_threads(run.threads)
    with attempts.attempt(run.uri, run.store.lease) as attempt:
        if attempt.error is not None:
            return {"error": attempt.error}
        feed = _LocalFeed(rows=run.rows, rank=dist.get_rank(), world=dist.get_world_size())
        return Training(run, feed, attempt).run()


def _run(world: int, do: Callable[..., Any], *arguments: Any) -> tuple[list[int | None], Any]:
    """Exit codes by rank, and what the first rank gave or raised."""
    prepare_environment()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "deepspeed"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(rank, world, folder, do, *arguments)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        codes, result = _ended(ranks), Path(folder, "result")
        return codes, pickle.loads(result.read_bytes()) if result.exists() else None


def _ended(ranks: Sequence[BaseProcess]) -> list[int | None]:
    """The exit codes. When one fails the others are ended, too."""
    end = time.monotonic() + _LONGEST_SECONDS
    try:
        while any(rank.exitcode is None for rank in ranks) and time.monotonic() < end:
            wait([rank.sentinel for rank in ranks if rank.exitcode is None], timeout=1)
            if any(rank.exitcode for rank in ranks):
                break
        return [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def _rank(rank: int, world: int, folder: str, do: Callable[..., Any], *arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: Any = None
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    try:
        result = do(*arguments)
    except ScionError as error:
        result = error
        raise
    finally:
        if rank == 0:
            Path(folder, "result").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
