"""A run whose micro-batches do not fit a device. Tests have no GPU, so a task raises its out-of-memory error."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import Stopped, TrainingError
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.order.row_order import RowOrder
from tests.integration.conftest import pair_shards
from tests.integration.test_engine import ordered_rows
from tests.integration.test_guards import clean
from tests.ranks import fit, train_run
from trainer.config.train import TrainConfig
from trainer.embedder_spec import EmbedderSpec
from trainer.engine.micro_batches import is_out_of_memory
from trainer.engine.train_run import TrainRun
from trainer.monitoring import run_log
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask

BATCH = 8


@dataclass(frozen=True)
class Cramped:
    """A task that trains on devices of which the last rank's has room for few rows."""

    task: LanguageModelTask
    most: int
    chunk_tokens: ClassVar[int | None] = None
    passes: ClassVar[str] = "direct"

    @property
    def length(self) -> int:
        return self.task.length

    def module(self, each: Any = None) -> Any:
        module, most = self.task.module(each), self.most
        forward = module.forward

        def cramped(batch: Any) -> Any:
            last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
            if torch.is_grad_enabled() and last and len(batch.input_ids) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(batch)

        module.forward = cramped
        return module

    def collator(self) -> Callable[..., Any]:
        return self.task.collator()

    def export(self, weights: Any, uri: str, frozen: Any = ()) -> None:
        self.task.export(weights, uri, frozen)


def run(shards: Any, source: str, folder: Path, most: int, micro: int | None) -> TrainRun:
    config = TrainConfig(steps=6, batch_size=BATCH, micro_batch=micro, zero_stage=2, checkpoint_steps=2)
    task = LanguageModelTask(model_uri=source, length=32, probability=0.5, seed=1)
    return train_run(Cramped(task, most), config, ordered_rows(shards, BATCH, micro), str(folder))


def starts(one: TrainRun) -> list[int]:
    return [entry["micro"] for entries in run_log.read(f"{one.uri}/log") for entry in entries if entry["kind"] == "start"]


def test_a_run_that_finds_the_rows_that_fit_trains_as_if_they_were_set(shards, source_folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    one = run(shards, source_folder, tmp_path / "a", most=1, micro=None)
    fit(one, workers=2)
    assert starts(one) == [4, 2, 1]
    explicit = run(shards, source_folder, tmp_path / "b", most=1, micro=1)
    fit(explicit, workers=2)
    weights, other = (load_file(f"{each.export_uri}/model.safetensors") for each in (one, explicit))
    assert all(torch.equal(weights[name], other[name]) for name in other)
    assert clean(one)
    assert not list(tmp_path.glob("*/micro.json"))


@pytest.mark.slow
def test_one_row_that_does_not_fit_ends_the_run_and_says_what_helps(shards, source_folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    one = run(shards, source_folder, tmp_path, most=0, micro=4)
    with pytest.raises(TrainingError, match=r"OutOfMemoryError: CUDA out of memory.*raise train.zero_stage"):
        fit(one, workers=2)
    assert starts(one) == [4, 2, 1]


@pytest.mark.slow
def test_a_resumed_run_remembers_what_fits_until_another_number_is_set(shards, source_folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    one = run(shards, source_folder, tmp_path, most=2, micro=4)
    for step in (1, 2):
        with pytest.raises(Stopped):
            fit(one, workers=2, stop=step)
    assert starts(one) == [4, 2, 2]
    fit(replace(one, rows=ordered_rows(shards, BATCH, 3)), workers=2)
    assert starts(one) == [4, 2, 2, 3, 1]


@dataclass(frozen=True)
class CrampedPairs:
    """Pairs on a device that holds no more than `most` tokens with their graph."""

    task: ContrastiveTask
    most: int
    chunk_tokens: int | None
    passes: ClassVar[str] = "cached"

    @property
    def length(self) -> int:
        return self.task.length

    def module(self, each: Any = None) -> Any:
        module, most = self.task.module(each), self.most
        encode = module.encode

        def cramped(ids: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and ids.numel() > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return encode(ids, *others)

        module.encode = cramped
        return module

    def collator(self) -> Callable[..., Any]:
        return replace(self.task, chunk_tokens=self.chunk_tokens).collator()

    def export(self, weights: Any, uri: str, frozen: Any = ()) -> None:
        self.task.export(weights, uri, frozen)


def test_chunks_of_pairs_are_halved_until_they_fit(source_folder: str, tmp_path: Path, pairs: list[dict[str, str]]) -> None:
    folder = f"{tmp_path}/pairs"
    manifest = pair_shards(pairs[:24], source_folder, folder)
    task = ContrastiveTask(model_uri=source_folder, spec=EmbedderSpec(max_length=16))
    config = TrainConfig(steps=3, batch_size=8)
    order = RowOrder(streams=manifest.order_streams({"pairs": 1.0}), batch=8, seed=1)
    rows = OrderedRows(order=order, folder=folder, manifest=manifest, micro_batch=None)
    one = train_run(CrampedPairs(task, 60, 200), config, rows, f"{tmp_path}/run")
    fit(one, workers=1)
    assert len(starts(one)) == 3  # 200 tokens, 100, 50
    asked = train_run(CrampedPairs(task, 60, 50), config, rows, f"{tmp_path}/asked")
    fit(asked, workers=1)
    own, other = (load_file(f"{each.export_uri}/model.safetensors") for each in (one, asked))
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_memory_of_the_host_counts_too() -> None:
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(full.value)
    assert not is_out_of_memory(RuntimeError("The size of tensor a (8) must match"))
