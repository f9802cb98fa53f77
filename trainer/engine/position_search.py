"""The search of `merging/self_positioning.py` on the workers of Ray Train."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from ray import cloudpickle

from data_pipeline import keyed_random
from data_pipeline.pairs.batch import PairBatch
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.position import position_engine
from trainer.engine import launch
from trainer.engine.entry import enter_search
from trainer.engine.passes import PASSES
from trainer.engine.step import optimizer_step
from trainer.engine.worker import local_model
from trainer.merging.embedders import open_mapped
from trainer.merging.self_positioning import Position, SelfPositioning
from trainer.tasks.contrastive import ContrastiveTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search as its workers know it."""

    task: ContrastiveTask
    """Of the base."""
    models: tuple[str, ...]
    settings: SelfPositioning
    pairs: pa.Table
    """Tokenized probe pairs."""
    seed: int
    threads: int


def search(given: Search, uri: str, *, workers: int, worker_cpus: float, gpu: bool) -> tuple[float, ...]:
    """The weights of the differences of the models from their base.

    Args:
        uri: the folder for Ray's own files.

    Raises:
        ScionError: what a worker raised.
    """
    payload = {"search": cloudpickle.dumps(given)}
    ended = launch.start(enter_search, payload, uri, workers=workers, worker_cpus=worker_cpus, gpu=gpu, minutes=30.0)
    return tuple(ended["weights"])


def search_worker(given: Search) -> dict[str, Any]:
    """Runs on every worker; returns the weights and the loss of each step, the same on every rank."""
    if not torch.cuda.is_available():
        torch.set_num_threads(given.threads)
    settings, world = given.settings, dist.get_world_size()
    micro = -(-settings.batch_size // world)
    config = TrainConfig(
        steps=settings.steps,
        batch_size=micro * world,
        zero_stage=settings.zero_stage,
        clip=0.0,
        warmup_steps=0,  # type: ignore[arg-type]
    )
    position = Position(settings, len(given.models))
    with local_model(given.task) as task:
        module = partitioned.load_module(task, config)
        collate = task.collator()
    engine = position_engine(module, config, micro, position, map(_state, given.models))
    engine.eval()  # dropout would make each step another problem
    losses = []
    for step in range(settings.steps):
        batch = collate(_rows(given, step, micro))
        assert isinstance(batch, PairBatch)
        outcome = optimizer_step(engine, [batch], 1, 0, False, passes=PASSES[given.task.passes])
        losses.append(outcome.loss)
    return {"weights": position.weights, "losses": losses}


def _state(uri: str) -> Mapping[str, torch.Tensor]:
    """The weights of a model, mapped from its files, by their names in the module."""
    return {f"model.{name}": value for name, value in open_mapped(uri).model.state_dict().items()}


def _rows(given: Search, step: int, micro: int) -> pa.Table:
    """This rank's rows of a step: a random choice of all pairs, filled up with rows of weight 0."""
    count, ranks = given.settings.batch_size, dist.get_world_size()
    key = keyed_random.key("position", given.seed, step)
    chosen = np.argsort(keyed_random.bits(key, np.arange(len(given.pairs))), kind="stable")[:count]
    places = np.resize(chosen, micro * ranks)[dist.get_rank() * micro :][:micro]
    weights = np.arange(micro * ranks)[dist.get_rank() * micro :][:micro] < len(chosen)
    rows = given.pairs.take(pa.array(places))
    return rows.append_column("stream", pa.array([0] * micro)).append_column("weight", pa.array(weights.astype(np.float32)))
