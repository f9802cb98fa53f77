"""LoRA agrees with peft in plain torch at every ZeRO stage, restarts to the last bit, and exports a plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from data_pipeline.errors import ConfigError
from tests.families.configs import COMMON, tiny
from tests.integration.stepwise import stepwise, stepwise_config
from tests.integration.test_universal import ROWS, batch
from tests.ranks import on_ranks
from trainer.checkpoints import export
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import write_task
from trainer.config.train import TrainConfig
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models import adapters
from trainer.models.adapters import Lora
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask

STEPS = 3


class Run:
    def __init__(self, model: str, folder: str, stage: int, precision: str = "fp32") -> None:
        self.task = LanguageModelTask(model_uri=model, length=32, probability=0.15, seed=1)
        self.folder = folder
        self.config = stepwise_config(STEPS, stage, precision, lora_rank=4, lora_alpha=8)


def train(run: Run, first: int) -> list[float]:
    """Trains from the checkpoint at step `first`, with a checkpoint after each step."""
    import torch.distributed as dist

    from trainer.deepspeed_bridge import partitioned
    from trainer.engine import setup

    module = partitioned.load_module(run.task, run.config)
    setup.check_forward(module, run.config, 32)
    return stepwise(run, setup.make_engine(module, run.config, 1, ROWS // dist.get_world_size()), first)


def by_hand(run: Run) -> tuple[list[float], Any]:
    """Trains the same with peft's model in plain torch; returns the losses and the merged model."""
    from peft import LoraConfig, get_peft_model

    module = run.task.module().train()
    model: Any = module.model
    rows = [model.get_input_embeddings().weight, model.get_output_embeddings().bias]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for weight in rows:
        weight.requires_grad_(True)
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    assert {n for n, w in module.named_parameters() if w.requires_grad and ".lora_" not in n} == {
        "model.bert.embeddings.word_embeddings.weight",
        "model.cls.predictions.bias",
    }
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    optimizer = torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.01}, {"params": groups[1], "weight_decay": 0.0}])
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = run.config.rate(step, True)
        batches = [batch(step, row) for row in range(ROWS)]
        targets = sum(len(one.labels) for one in batches)
        optimizer.zero_grad()
        loss = sum(module(one).sum() for one in batches) / targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.config.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, wrapped.merge_and_unload()


@pytest.mark.parametrize(("world", "stage"), [(1, 1), (2, 2), (3, 3)])
def test_a_run_trains_as_peft_does_and_leaves_a_plain_model(source_folder: str, tmp_path: Path, world: int, stage: int) -> None:
    run = Run(source_folder, str(tmp_path), stage)
    losses = on_ranks(world, train, run, 0)
    expected, merged = by_hand(run)
    assert losses == pytest.approx(expected, abs=1e-5)
    weights, merged_weights = load_file(tmp_path / "from-0" / "model.safetensors"), merged.state_dict()
    before = load_file(f"{source_folder}/model.safetensors")
    assert weights.keys() == before.keys()
    for name, weight in weights.items():
        assert (weight - merged_weights[name]).abs().max() < 1e-5, name
    changed_names = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert changed_names == {
        name
        for name in weights
        if name.endswith("weight") and "LayerNorm" not in name and "position" not in name and "token_type" not in name
    } | {"cls.predictions.bias"}
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "from-0")
    assert type(model.bert.encoder.layer[0].attention.self.query) is torch.nn.Linear


@pytest.mark.parametrize(("world", "stage", "precision"), [(2, 1, "fp32"), pytest.param(3, 3, "bf16", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_same_to_the_last_bit(
    source_folder: str, tmp_path: Path, world: int, stage: int, precision: str
) -> None:
    run = Run(source_folder, str(tmp_path), stage, precision)
    losses = on_ranks(world, train, run, 0)
    assert on_ranks(world, train, run, 2) == losses[2:]
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("from-0", "from-2"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    store = Store(f"{run.folder}/checkpoints", 9)
    write_task(store, run.task, (), run.config.lora)
    export.export(store, store.usable()[0], str(tmp_path / "out"))
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(whole[name], out[name]) for name in whole)


def test_a_run_resumes_with_another_number_of_workers(source_folder: str, tmp_path: Path) -> None:
    run = Run(source_folder, str(tmp_path), 2)
    losses = on_ranks(2, train, run, 0)
    assert on_ranks(3, train, run, 1) == pytest.approx(losses[1:], abs=1e-5)


@pytest.mark.parametrize("name", [*COMMON, "mixtral", "qwen3_next", "mamba", "t5", "falcon"])
def test_new_adapters_of_every_family_change_nothing_and_can_be_merged(name: str) -> None:
    model = tiny(name).eval()
    names, inputs = list(model.state_dict()), {"input_ids": torch.arange(5, 25)[None]}
    inputs |= {"decoder_input_ids": inputs["input_ids"]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        plain = model(**inputs).logits
        adapters.add_adapters(model, Lora(rank=4, alpha=8))
        assert torch.equal(model(**inputs).logits, plain)
        for path, weight in model.named_parameters():
            if adapters.is_adapter(path):
                weight.normal_(std=0.1)
        adapted = model(**inputs).logits
        adapters.merge_adapters(model)
        assert (model(**inputs).logits - adapted).norm() < 1e-4 * adapted.norm() < (adapted - plain).norm()
    assert list(model.state_dict()) == names


def test_new_adapters_leave_the_losses_unchanged(source_folder: str) -> None:
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    plain, adapted = task.module().eval(), task.module().eval()
    adapters.add_adapters(adapted.model, Lora(rank=4, alpha=8))
    assert torch.equal(plain(batch(0, 0)), adapted(batch(0, 0)))


def test_adapters_of_an_embedder_are_merged(source_folder: str, tmp_path: Path) -> None:
    task = ContrastiveTask(model_uri=source_folder, spec=EmbedderSpec(max_length=32))
    module, lora = task.module().eval(), Lora(rank=4, alpha=8, targets=("query", "value"))
    adapters.add_adapters(module.model, lora)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if adapters.is_adapter(name):
                weight.normal_(std=0.3)
    weights = {name: value for name, value in module.state_dict().items() if adapters.is_adapter(name) or "word_emb" in name}
    assert len(weights) == 1 + 2 * 2 * 2
    task.export(weights, str(tmp_path / "embedder"), (), lora)
    embedder = Embedder.load(str(tmp_path / "embedder"))
    rows = embedder.tokenize(["Choose a file."])
    with torch.no_grad():
        ids = torch.tensor(rows)
        expected = module.encode(ids, torch.ones_like(ids)).numpy()
    assert abs(embedder.encode_ids(rows) - expected).max() < 1e-6
    assert abs(Embedder.load(source_folder).encode_ids(rows) - expected).max() > 1e-3


@pytest.mark.parametrize("targets", [("no_such_layer",), ("word_embeddings",), ("decoder",)])
def test_targets_without_a_linear_layer_of_the_body_are_refused(source_folder: str, targets: tuple[str, ...]) -> None:
    model = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1).module().model
    with pytest.raises(ConfigError, match="no layer can have adapters"):
        adapters.add_adapters(model, Lora(rank=4, alpha=8, targets=targets))


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [("mixtral", ("w1", "w3"), "no layer can have adapters"), ("mamba", ("in_proj", "out_proj"), "past any adapter")],
)
def test_weights_that_no_layer_multiplies_with_have_no_adapters(name: str, targets: tuple[str, ...], message: str) -> None:
    """Experts are no layers, and Mamba's kernels read a layer's weight."""
    with pytest.raises(ConfigError, match=message):
        adapters.add_adapters(tiny(name), Lora(rank=4, alpha=8, targets=targets))


@pytest.mark.parametrize("other", [{"frozen": ("body",)}, {"ema": 0.9}, {"muon_rate": 0.02, "clip": 0.0}, {"lora_rank": 0}])
def test_settings_that_exclude_adapters_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="lora_rank"):
        TrainConfig(**{"lora_rank": 4} | other)
    with pytest.raises(ConfigError, match="without lora_rank"):
        TrainConfig(lora_targets=("query",))
