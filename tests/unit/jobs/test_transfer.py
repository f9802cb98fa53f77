"""The files that `scion transfer` writes, without Ray."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import transfer
from ray_jobs.config.schema import FactoriseConfig, ScionConfig, TransferConfig
from ray_jobs.verify import verify
from tests.conftest import tiny_decoder
from trainer.transfer.methods import METHODS
from trainer.transfer.problem import Problem, assemble


@pytest.mark.parametrize("method", ["fvt", "random", "scratch"])
@pytest.mark.parametrize("factorise", [FactoriseConfig(), FactoriseConfig(rank=8)], ids=["whole", "factors"])
def test_the_source_s_format_is_kept_and_verified(problem: Problem, tmp_path: Any, method: str, factorise) -> None:
    """A bf16 model becomes a bf16 model, every matrix of it; it was saved in fp32, at twice the size."""
    source, folder = str(tmp_path / "source"), str(tmp_path / "made")
    tiny_decoder(problem.source, "llama", tied=False).bfloat16().save_pretrained(source)
    problem.source.save_pretrained(source)
    plan = assemble(problem, METHODS[method].place(problem, METHODS[method].config()), method)
    config = ScionConfig(
        text="",
        pairs="",
        test_pairs="",
        output="",
        source_model=source,
        method=method,
        transfer=TransferConfig(factorise=factorise),
    )
    transfer.write(config, problem, plan, folder)
    assert {weight.dtype for weight in load_file(f"{folder}/model.safetensors").values()} == {torch.bfloat16}
    if factorise.rank is None:
        plan.save(folder)
        assert all(finding.is_ok for finding in verify(folder, source_model=source))
        assert np.isfinite(load_file(f"{folder}/model.safetensors")["lm_head.weight"].float().numpy()).all()


def test_texts_come_by_language_where_each_has_pairs(monkeypatch) -> None:
    lines = [("el", "α"), ("tr", "b"), ("el", "γ")]
    monkeypatch.setattr("ray_jobs.shard.training_text", lambda config, rates: iter(lines))
    training = Pairs(ids=["1", "2"], anchors=["one", "two"], positives=["ένα", "iki"], negatives=[[], []], langs=["el", "tr"])
    result = transfer.texts_by_language(ScionConfig(), training, {"el": 1.0, "tr": 1.0})
    assert {lang: (list(part.corpus()), part.anchors, part.positives) for lang, part in result.items()} == {
        "el": (["α", "γ"], ["one"], ["ένα"]),
        "tr": (["b"], ["two"], ["iki"]),
    }
    assert transfer.texts_by_language(ScionConfig(), training, {"el": 1.0, "ja": 1.0}) == {}
    assert transfer.texts_by_language(ScionConfig(), training, {"el": 1.0}) == {}


def test_the_artefact_says_how_much_text_was_learned_from(monkeypatch) -> None:
    monkeypatch.setattr(transfer, "text_sizes", lambda config: {"el": 9_000, "cy": 1_000})
    assert transfer.text_bytes(ScionConfig()) == {"sample": 10_000, "corpus": 10_000}
    monkeypatch.setattr(transfer, "TEXT_BYTES", 2_000)
    result = transfer.text_bytes(ScionConfig())
    assert result["corpus"] == 10_000
    assert 1_900 <= result["sample"] <= 2_000
