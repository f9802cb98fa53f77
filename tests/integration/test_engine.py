"""Ray Train, Ray Data and DeepSpeed together."""

import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import CorruptError, DataOrderError
from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from data_pipeline.feed.reader import check_received
from data_pipeline.order.mixture import temperature_weights
from data_pipeline.order.row_order import RowOrder
from data_pipeline.shards.manifest import Manifest
from tests import ranks
from tests.ranks import train_run
from trainer.config.train import TrainConfig
from trainer.engine import launch
from trainer.models import loading
from trainer.models.packed_lm import PackedLM
from trainer.tasks.language_modeling import LanguageModelTask


def ordered_rows(shards: tuple[str, Manifest], batch: int, micro: int | None) -> OrderedRows:
    folder, shard_manifest = shards
    order = RowOrder(streams=shard_manifest.order_streams(temperature_weights({"el": 1}, 1.0)), batch=batch, seed=4)
    return OrderedRows(order=order, folder=folder, manifest=shard_manifest, micro_batch=micro)


def train(shards, source_folder: str, folder: str, stage: int, workers: int, ray: bool = False, **changes) -> list[float]:  # type: ignore[no-untyped-def]
    config = TrainConfig(steps=5, batch_size=10, micro_batch=3, zero_stage=stage, checkpoint_steps=100, **changes)
    rows = ordered_rows(shards, config.batch_size, config.micro_batch)
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    run = train_run(task, config, rows, folder, row_groups={"all": np.arange(800)})
    result = launch.fit(run, workers=workers, worker_cpus=1, gpu=False) if ray else ranks.fit(run, workers=workers)
    return [entry["loss"] for entry in result["history"]]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("on_ray", [[(1, 2)], pytest.param([(1, 2), (3, 2), (1, 1), (2, 2)], marks=pytest.mark.slow)])
def test_all_zero_stages_and_any_number_of_workers_train_alike(shards, source_folder: str, tmp_path, on_ray) -> None:
    """fp32, 10 rows a step in micro-batches of 3: neither divides evenly, so ranks are padded with rows of weight 0."""
    losses_by_setup = {
        (stage, workers): train(
            shards, source_folder, str(tmp_path / f"{stage}-{workers}"), stage, workers, (stage, workers) in on_ray
        )
        for stage, workers in ((1, 2), (1, 1), (2, 2), (3, 1), (3, 2), (3, 3))
    }
    expected = by_hand(shards, source_folder)
    weights = {
        key: loading.language_model(str(tmp_path / f"{key[0]}-{key[1]}" / "model"), 0).state_dict() for key in losses_by_setup
    }
    for key, losses in losses_by_setup.items():
        assert np.abs(np.array(losses) - expected).max() < 1e-4, (key, losses, expected)
        assert np.abs(np.array(losses) - np.array(losses_by_setup[1, 2])).max() < 1e-5, key
        for name, tensor in weights[1, 2].items():
            assert (tensor - weights[key][name]).abs().max() < 1e-5, (key, name)
    for folder in tmp_path.iterdir():
        assert set(os.listdir(folder)) == {"model", "ledger", "log", "checkpoints"}


@pytest.mark.parametrize("stage", [1, 3])
def test_embeddings_learn_alone_at_first(shards, source_folder: str, tmp_path, stage: int) -> None:
    before = loading.language_model(source_folder, 1).state_dict()
    train(shards, source_folder, str(tmp_path / "a"), stage, 2, embedding_steps=5)
    after = loading.language_model(str(tmp_path / "a" / "model"), 1).state_dict()
    changed_names = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed_names == {
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bf16_run_exports_its_fp32_weights(shards, source_folder: str, tmp_path, stage: int) -> None:
    """Finding 12: the export was rounded to bf16, which lost most of the change of small steps."""
    folders = {}
    for export in ("fp32", "bf16"):
        settings = {"precision": "bf16", "export": export, "learning_rate": 2e-5}
        train(shards, source_folder, str(tmp_path / export), stage, 2, **settings)
        folders[export] = load_file(tmp_path / export / "model" / "model.safetensors")
    whole, rounded = folders["fp32"], folders["bf16"]
    assert {weight.dtype for weight in whole.values()} == {torch.float32}
    assert {weight.dtype for weight in rounded.values()} == {torch.bfloat16}
    before = loading.language_model(source_folder, 1).state_dict()
    learned = lost = 0.0
    for name, weight in whole.items():
        assert torch.equal(weight.bfloat16(), rounded[name]), name
        learned += float((weight - before[name]).square().sum())
        lost += float((weight - rounded[name].float()).square().sum())
    assert 0 < 100 * learned < lost


@pytest.mark.parametrize("stage", [1, 3])
def test_a_bf16_run_starts_from_the_model_s_own_fp32_weights(shards, source_folder: str, tmp_path, stage: int) -> None:
    """DeepSpeed rounds them first: a run that learned nothing exported other weights."""
    train(shards, source_folder, str(tmp_path), stage, 2, precision="bf16", learning_rate=1e-12, weight_decay=0.0)
    before, after = loading.language_model(source_folder, 1), load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in before.state_dict().items():
        if name in after:
            assert (after[name] - weight).abs().max() < 1e-9, name


@pytest.mark.parametrize("stage", [1, 3])
def test_the_body_learns_after_the_embeddings(shards, source_folder: str, tmp_path, stage: int) -> None:
    before = loading.language_model(source_folder, 1).state_dict()
    train(shards, source_folder, str(tmp_path), stage, 2, embedding_steps=3)
    later = loading.language_model(str(tmp_path / "model"), 1).state_dict()
    assert all(not torch.equal(before[name], later[name]) for name in before if "layer.0" in name and "weight" in name)


def by_hand(shards, source_folder: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The same training in twenty lines of plain torch: one process, the whole batch, no DeepSpeed, no Ray."""
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    config = TrainConfig(steps=5, batch_size=10)
    module = PackedLM(loading.language_model(source_folder, 1), causal=False).train()
    groups = [[p for p in module.parameters() if p.ndim > 1], [p for p in module.parameters() if p.ndim <= 1]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": config.weight_decay}, {"params": groups[1], "weight_decay": 0.0}]
    )
    feed = RankFeed(rows=ordered_rows(shards, 10, 10), rank=0, world=1)
    losses = []
    for step, rows in enumerate(feed.read_local(0, 5)):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step, True)
        batch = task.collator()(rows)
        loss = module(batch).sum() / len(batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


@pytest.mark.usefixtures("ray_session")
def test_ray_data_streams_what_the_local_feed_reads(shards) -> None:
    rows = ordered_rows(shards, 10, 3)
    for rank in range(2):
        feed = RankFeed(rows=rows, rank=rank, world=2)
        streamed, local = list(feed.read_with_ray(3, 40)), list(feed.read_local(3, 40))
        assert len(streamed) == len(local) == 37
        for a, b in zip(streamed, local, strict=True):
            assert a.select(b.column_names).equals(b)


@pytest.mark.usefixtures("ray_session")
def test_the_feed_reports_a_changed_byte_in_a_shard(shards, tmp_path) -> None:
    """Our own error, not Ray's for a failed task, after which the run would retry three times."""
    shutil.copytree(shards[0], tmp_path / "rows")
    path = next((tmp_path / "rows").rglob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    feed = RankFeed(rows=ordered_rows((str(tmp_path / "rows"), shards[1]), 10, 3), rank=0, world=1)
    with pytest.raises(CorruptError, match=re.escape(path.name)):
        list(feed.read_with_ray(0, 60))


def test_rows_that_were_not_planned_are_refused(shards) -> None:
    feed = RankFeed(rows=ordered_rows(shards, 10, 3), rank=0, world=2)
    first, second = feed.read_local(0, 2)
    check_received(feed.slots(0), first, 0)
    with pytest.raises(DataOrderError, match="rank 0 received step 1"):
        check_received(feed.slots(0), second, 0)
    with pytest.raises(DataOrderError, match="received"):
        check_received(feed.slots(0), first.take(list(reversed(range(len(first))))), 0)
    with pytest.raises(DataOrderError, match="nothing"):
        check_received(feed.slots(0), first.slice(0, 3), 0)


def test_a_bad_learning_rate_ends_with_a_reason(shards, source_folder: str, tmp_path) -> None:
    from data_pipeline.errors import TrainingError

    with pytest.raises(TrainingError, match="not finite in 3 steps in a row; the run has gone back 3 times"):
        train(shards, source_folder, str(tmp_path), 1, 1, learning_rate=1e30, clip=0.0, max_failures=0, warmup_steps=0)


def test_replacing_a_field_of_a_frozen_config_checks_it_again() -> None:
    from data_pipeline.errors import ConfigError

    with pytest.raises(ConfigError):
        replace(TrainConfig(), steps=0)
