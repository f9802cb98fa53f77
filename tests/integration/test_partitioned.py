"""ZeRO-3 partitions weights while it reads them: loading, training and export agree with a model that is read whole."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import FAMILIES as TOKENIZERS
from tests.families.configs import COMMON, FAMILIES, tiny
from tests.integration.test_universal import ROWS, batch
from tests.ranks import on_ranks
from trainer.config.train import TrainConfig
from trainer.embedder_spec import EmbedderSpec
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask

OTHERS = tuple(name for name in FAMILIES if name not in COMMON and name not in ("mobilebert", "funnel"))


def tasks(folder: str, name: str) -> list[Any]:
    task_list: list[Any] = [ContrastiveTask(model_uri=folder, spec=EmbedderSpec(max_length=32))]
    if FAMILIES[name].kind in ("masked", "causal", "multimodal"):
        task_list.append(LanguageModelTask(model_uri=folder, length=32, probability=0.15, seed=1))
    return task_list


def different(whole: Any, cut: Any) -> list[str]:
    """Names of the weights and buffers that differ in any bit; one entry for all if names, ties or flops differ."""
    from deepspeed.runtime.zero import GatheredParameters

    names = [name for name, _ in whole.named_parameters()]
    if names != [name for name, _ in cut.named_parameters()] or whole.flops() != cut.flops():
        return ["names, ties or flops"]
    buffers = dict(cut.named_buffers())
    wrong = [name for name, one in whole.named_buffers() if not torch.equal(one, buffers[name])]
    for (name, one), other in zip(whole.named_parameters(), cut.parameters(), strict=True):
        with GatheredParameters([other]):
            if not torch.equal(other, one.to(other.dtype)) or other.requires_grad != one.requires_grad:
                wrong.append(name)
    return wrong


def compare(folders: dict[str, str], precision: str) -> list[str]:
    """The differences between a module that is partitioned while it is read and one that is read whole."""
    from data_pipeline.errors import ModelError
    from trainer.deepspeed_bridge import partitioned
    from trainer.engine import setup

    config, wrong = TrainConfig(zero_stage=3, precision=precision), []  # type: ignore[arg-type]
    for name, folder in folders.items():
        for task in tasks(folder, name):
            label = f"{name} {type(task).__name__}"
            whole, cut = task.module(), partitioned.load_module(task, config)
            wrong += [f"{label}: {what}" for what in different(whole, cut)]
            ways = []
            for module, stage in ((whole, 1), (cut, 3)):
                try:
                    ways.append(setup.check_forward(module, TrainConfig(zero_stage=stage, precision=precision), 32).path)  # type: ignore[arg-type]
                except ModelError:
                    ways.append(None)  # type: ignore[arg-type]
            if ways[0] != ways[1]:
                wrong.append(f"{label}: {ways}")
            if any(weight.numel() for weight in cut.parameters()):
                wrong.append(f"{label}: whole weights after the check")
    return wrong


def _save_models(names: tuple[str, ...], home: Path, english: list[str]) -> dict[str, str]:
    for name in names:
        tokenizer = TOKENIZERS[FAMILIES[name].tokenizer](english[:100], 400)
        tiny(name, len(tokenizer), pad_token_id=tokenizer.pad_token_id).save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    return {name: str(home / name) for name in names}


@pytest.mark.parametrize(
    ("world", "names", "precision"),
    [
        (2, (*COMMON, "mixtral", "t5", "bart", "gemma3", "mamba"), "fp32"),
        (3, ("bert", "llama", "gpt2", "mixtral", "mbart"), "bf16"),
        pytest.param(3, OTHERS, "fp32", marks=pytest.mark.slow),
    ],
)
def test_a_model_partitioned_while_it_is_read_equals_one_read_whole(
    tmp_path: Path, english: list[str], world: int, names: tuple[str, ...], precision: str
) -> None:
    """In names, ties, weights and buffers to the last bit, and in the path that the check of the forward chooses."""
    assert on_ranks(world, compare, _save_models(names, tmp_path, english), precision) == []


def train(folder: str, home: str, stage: int, precision: str, cut: bool) -> list[float]:
    """Trains two steps. Without `cut`, exports as Scion once did: gathers all weights and saves them in a model."""
    import torch.distributed as dist

    from trainer.deepspeed_bridge import partitioned
    from trainer.deepspeed_bridge.trained_weights import trained_weights
    from trainer.engine import setup
    from trainer.engine.step import optimizer_step, set_rates

    task = LanguageModelTask(model_uri=folder, length=32, probability=0.15, seed=1)
    world, rank = dist.get_world_size(), dist.get_rank()
    config = TrainConfig(steps=2, batch_size=ROWS, micro_batch=1, zero_stage=stage, precision=precision, warmup_steps=0)  # type: ignore[arg-type]
    module: Any = partitioned.load_module(task, config) if cut else task.module()
    engine = setup.make_engine(module, config, 1, ROWS // world)
    engine.train()
    losses = []
    for step in range(2):
        set_rates(engine, config, step)
        losses.append(optimizer_step(engine, [batch(step, row) for row in range(rank, ROWS, world)], 1, 0, False).loss)
    if cut:
        with trained_weights(engine, config, home) as weights:
            if rank == 0:
                task.export(weights, f"{home}/cut")
        return losses
    state = engine._zero3_consolidated_16bit_state_dict() if stage == 3 else engine.module.state_dict()
    if rank == 0:
        model = task.module().model
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        model.save_pretrained(f"{home}/whole")
    return losses


@pytest.mark.parametrize(("world", "stage"), [(2, 3), (3, 3), (2, 1)])
def test_a_run_gives_the_same_losses_and_the_same_folder(source_folder: str, tmp_path: Path, world: int, stage: int) -> None:
    whole = on_ranks(world, train, source_folder, str(tmp_path), stage, "fp32", False)
    assert on_ranks(world, train, source_folder, str(tmp_path), stage, "fp32", True) == whole
    before, now = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in before)
    assert (tmp_path / "whole" / "config.json").read_text() == (tmp_path / "cut" / "config.json").read_text()
    assert set(os.listdir(tmp_path)) == {"whole", "cut"}


def test_two_matrices_that_could_be_tied_and_differ_stay_two(tmp_path: Path, english: list[str]) -> None:
    """transformers compares the two matrices, which partitioned weights would prevent."""
    folder = _save_models(("llama",), tmp_path, english)["llama"]
    weights = load_file(f"{folder}/model.safetensors")
    settings = Path(folder, "config.json")
    assert "lm_head.weight" in weights
    settings.write_text(settings.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert on_ranks(2, compare, {"llama": folder}, "fp32") == []


def check_with_failure(folder: str, stage: int, layer: int, kernel: str | None) -> Any:
    """Checks the forward while one layer fails on one rank alone, as if out of memory."""
    import torch.distributed as dist

    from data_pipeline.errors import ModelError
    from trainer.collectives import from_every_rank
    from trainer.deepspeed_bridge import partitioned
    from trainer.engine import setup

    config = TrainConfig(zero_stage=stage)  # type: ignore[arg-type]
    module: Any = partitioned.load_module(LanguageModelTask(model_uri=folder, length=32, probability=0.15, seed=1), config)
    failing = module.model.bert.encoder.layer[layer]
    forward = failing.forward

    def fail(*arguments: Any, **options: Any) -> Any:
        if module.path.kernel == kernel:
            raise RuntimeError("out of memory here")
        return forward(*arguments, **options)

    if dist.get_rank() == 1:
        failing.forward = fail
    try:
        check = setup.check_forward(module, config, 32)
    except ModelError as error:
        return from_every_rank(error.what)
    assert stage < 3 or not any(weight.numel() for weight in module.parameters())
    return from_every_rank((check.path.kernel, check.reasons))


@pytest.mark.parametrize(("stage", "layer"), [(1, 0), (3, 0), (3, 1)])
def test_a_kernel_that_fails_on_one_rank_is_given_up_on_all(source_folder: str, stage: int, layer: int) -> None:
    """Under ZeRO-3 one rank tried the next kernel while the other still gathered weights for the first."""
    expected = ("eager", ("packed rows with sdpa attention fail (out of memory here)",))
    assert on_ranks(2, check_with_failure, source_folder, stage, layer, "sdpa") == [expected] * 2


@pytest.mark.parametrize("stage", [1, 3])
def test_a_model_s_own_forward_that_fails_on_one_rank_is_refused_on_all(source_folder: str, stage: int) -> None:
    refusals = on_ranks(2, check_with_failure, source_folder, stage, 1, None)
    assert refusals == ["the forward of BertForMaskedLM fails on 32 random tokens (out of memory here)."] * 2
