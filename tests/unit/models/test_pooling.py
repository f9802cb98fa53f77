"""Poolings, against sentence-transformers' own on the same inputs."""

import json

import numpy as np
import pytest
import torch

from data_pipeline.errors import ModelError
from tests.conftest import tiny_model, wordpiece
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models.pooling import POOLINGS, places

LENGTHS = (7, 1, 4)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token vectors [3, 7, 5] and their mask, with large numbers in the padding."""
    tokens = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    mask = mask if side == "right" else mask.flip(1)
    tokens[~mask] = 1e3
    return tokens, mask.long()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prompt", [0, 1, 3])
@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_every_pooling_is_that_of_sentence_transformers(name: str, prompt: int, side: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    tokens, mask = padded(side)
    rows = torch.tensor([length > prompt for length in LENGTHS])  # one without tokens behind its prompt has no vector there
    theirs = Pooling(5, name, include_prompt=prompt == 0)
    features = {"token_embeddings": tokens[rows], "attention_mask": mask[rows], "prompt_length": prompt}
    expected = theirs(features)["sentence_embedding"]
    skipped = torch.full((3,), prompt)
    assert torch.allclose(POOLINGS[name](tokens, places(mask, skipped))[rows], expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_the_side_of_the_padding_makes_no_difference(name: str) -> None:
    tokens, mask = padded("right")
    shifted, other = torch.full_like(tokens, 1e3), mask.flip(1)
    shifted[other > 0] = tokens[mask > 0]
    assert torch.equal(POOLINGS[name](tokens, places(mask)), POOLINGS[name](shifted, places(other)))


def test_a_token_counts_by_its_place_in_the_weighted_mean() -> None:
    tokens = torch.tensor([[[1.0], [10.0], [100.0]]])
    whole = POOLINGS["weightedmean"](tokens, places(torch.ones(1, 3, dtype=torch.long)))
    assert whole.item() == pytest.approx((1 * 1 + 2 * 10 + 3 * 100) / 6)
    behind = POOLINGS["weightedmean"](tokens, places(torch.ones(1, 3, dtype=torch.long), torch.tensor([1])))
    assert behind.item() == pytest.approx((2 * 10 + 3 * 100) / 5)


@pytest.mark.parametrize("name", ["mean", "weightedmean", "mean_sqrt_len_tokens"])
def test_sums_of_many_small_numbers_are_right_in_bf16(name: str) -> None:
    tokens, mask = torch.ones(1, 3000, 1), torch.ones(1, 3000, dtype=torch.long)
    expected = POOLINGS[name](tokens, places(mask)).item()
    assert POOLINGS[name](tokens.bfloat16(), places(mask)).item() == pytest.approx(expected, rel=0.01)


@pytest.fixture
def folder(english, tmp_path) -> str:
    tokenizer = wordpiece(english)
    Embedder(tiny_model(tokenizer).bert, tokenizer, EmbedderSpec(max_length=24)).save(str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_a_folder_of_each_pooling_is_read_on_both_sides(folder, english, name: str) -> None:
    """Ours by sentence-transformers, theirs by us."""
    from sentence_transformers import SentenceTransformer

    embedder = Embedder.load(folder)
    Embedder(embedder.model, embedder.tokenizer, EmbedderSpec(pooling=name, max_length=24)).save(folder)
    ours = Embedder.load(folder)
    assert ours.spec.pooling == name
    theirs = SentenceTransformer(folder, device="cpu")
    assert np.abs(theirs.encode(english[:30], batch_size=7) - ours.encode(english[:30])).max() < 1e-5
    theirs.save(f"{folder}/theirs")
    again = Embedder.load(f"{folder}/theirs")
    assert again.spec == EmbedderSpec(pooling=name, max_length=24)
    assert np.abs(again.encode(english[:30]) - ours.encode(english[:30])).max() < 1e-5


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        ({"pooling_mode": ["mean", "max"]}, r"several poolings \(mean, max\)"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, r"several poolings \(mean, cls\)"),
        ({"pooling_mode": "attention"}, "'attention' is not a pooling"),
        ({"pooling_mode_attention": True}, "'pooling_mode_attention' is not a pooling"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused_and_not_replaced_by_the_mean(folder, tmp_path, pooling, reason) -> None:
    (tmp_path / "embed.json").unlink()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))
    with pytest.raises(ModelError, match=reason):
        Embedder.load(folder)


def test_a_module_that_is_not_computed_is_refused(folder, tmp_path) -> None:
    (tmp_path / "embed.json").unlink()
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="a module Dense, which Scion does not compute"):
        Embedder.load(folder)
