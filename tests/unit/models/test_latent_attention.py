"""Latent attention pooling: its formula by brute force, and its weights through training, folder, merge and refusal."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.errors import ConfigError, ModelError
from ray_jobs.config.embedders import EmbedConfig
from tests.conftest import tiny_model, wordpiece
from trainer.config.train import TrainConfig
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.merging.embedders import open_mapped
from trainer.models import latent_attention
from trainer.models.latent_attention import LatentAttention
from trainer.models.pooling import POOLINGS, places
from trainer.tasks.contrastive import ContrastiveTask

WIDTH, LATENTS = 16, 5


def random_pooling() -> LatentAttention:
    torch.manual_seed(0)
    pooling = LatentAttention(WIDTH, LATENTS)
    for weight in pooling.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return pooling


def by_hand(pooling: LatentAttention, token: torch.Tensor) -> torch.Tensor:
    """h'' of one token, by loops over heads and latents."""
    size = WIDTH // pooling.heads
    query = pooling.query.weight @ pooling.norm(token)
    rows = [pooling.key_value.weight @ pooling.latent_norm(row) for row in pooling.latents]
    attended = []
    for head in range(pooling.heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.stack([query[part] @ row[:WIDTH][part] / math.sqrt(size) for row in rows]).softmax(dim=0)
        attended.append(sum(score * row[WIDTH:][part] for score, row in zip(scores, rows, strict=True)))
    middle = token + pooling.output.weight @ torch.cat(attended)
    wide = torch.nn.functional.gelu(pooling.widen.weight @ pooling.inner_norm(middle) + pooling.widen.bias)
    return middle + pooling.narrow.weight @ wide + pooling.narrow.bias


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_vector_is_the_mean_of_the_formula_over_the_tokens(side: str) -> None:
    pooling = random_pooling()
    assert pooling.heads == 8
    tokens = torch.randn(2, 4, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mask = mask if side == "right" else mask.flip(1)
    with torch.no_grad():
        found = pooling(tokens, places(mask))
        texts = [row[kept > 0] for row, kept in zip(tokens, mask, strict=True)]
        expected = torch.stack([torch.stack([by_hand(pooling, one) for one in text]).mean(0) for text in texts])
    assert (found - expected).abs().max() < 1e-5


def test_a_training_begins_with_the_mean_and_moves_every_weight() -> None:
    pooling, tokens, mask = LatentAttention(WIDTH, LATENTS), torch.randn(2, 4, WIDTH), torch.ones(2, 4, dtype=torch.long)
    assert torch.allclose(pooling(tokens, places(mask)), POOLINGS["mean"](tokens, places(mask)), atol=1e-6)
    optimizer = torch.optim.SGD(pooling.parameters(), lr=0.5)
    before = copy.deepcopy(pooling.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        pooling(tokens, places(mask)).square().sum().backward()
        optimizer.step()
    assert all((pooling.state_dict()[name] != value).any() for name, value in before.items())


@pytest.fixture
def folder(english, tmp_path) -> str:
    """An embedder whose latent attention is far from its beginning."""
    tokenizer = wordpiece(english)
    source = str(tmp_path / "source")
    tiny_model(tokenizer).save_pretrained(source)
    tokenizer.save_pretrained(source)
    task = task_of(source)
    module = task.module()
    with torch.no_grad():
        for weight in module.model.latent_pooling.parameters():  # type: ignore[union-attr]
            weight.add_(torch.randn_like(weight))
    output = str(tmp_path / "embedder")
    task.export(module.state_dict(), output)
    return output


def task_of(source: str, **settings: Any) -> ContrastiveTask:
    spec = EmbedderSpec(pooling="latentattention", max_length=24)
    return ContrastiveTask(model_uri=source, spec=spec, **({"latents": LATENTS} | settings))


def test_the_folder_holds_the_pooling_and_a_training_continues_with_it(folder, english) -> None:
    embedder = Embedder.load(folder)
    vectors = embedder.encode(english[:20])
    alone = np.concatenate([embedder.encode([text]) for text in english[:20]])
    assert np.abs(vectors - alone).max() < 1e-5
    mean = Embedder(copy.copy(embedder.model), embedder.tokenizer, EmbedderSpec(max_length=24)).encode(english[:20])
    assert np.abs(vectors - mean).max() > 0.05
    module = task_of(folder).module()
    assert module.check(24).difference < 1e-4
    ids = embedder.tokenize(english[:1])
    with torch.no_grad():
        again = module.encode(torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.long))
    assert np.abs(again.numpy() - vectors[:1]).max() < 1e-5
    with pytest.raises(ModelError, match=f"it has {LATENTS} latents, not 7"):
        task_of(folder, latents=7).module()


def test_new_weights_are_the_same_on_every_rank(folder, source_folder) -> None:
    first, second = (task_of(source_folder).module().state_dict() for _ in range(2))
    assert any("latent_pooling.latents" in name for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_merge_maps_the_weights_of_the_pooling_too(folder) -> None:
    assert f"{latent_attention.NAME}.latents" in open_mapped(folder).model.state_dict()


def test_without_its_weights_the_folder_is_refused(folder, source_folder, english, tmp_path) -> None:
    tokenizer = wordpiece(english)
    Embedder(tiny_model(tokenizer).bert, tokenizer, EmbedderSpec(max_length=24)).save(str(tmp_path / "plain"))
    (tmp_path / "plain" / "embed.json").write_text((tmp_path / "embedder" / "embed.json").read_text())
    with pytest.raises(ModelError, match="weights of its latent attention are missing"):
        Embedder.load(str(tmp_path / "plain"))


def test_sentence_transformers_refuses_the_folder(folder) -> None:
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="load_it_with_scion_Embedder"):
        SentenceTransformer(folder, device="cpu")


def test_adapters_are_refused_beside_it() -> None:
    train = TrainConfig(steps=1, batch_size=8, lora_rank=4)
    with pytest.raises(ConfigError, match="those of latentattention must be trained"):
        EmbedConfig(pooling="latentattention", train=train)
    with pytest.raises(ConfigError, match=r"at least one, got 0"):
        EmbedConfig(pooling="latentattention", latents=0)
