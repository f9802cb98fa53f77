"""What `scion transfer` writes, without Ray."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.pairs.rows import Pairs
from ray_jobs import transfer
from ray_jobs.config import FactoriseConfig, ScionConfig, TransferConfig
from ray_jobs.verify import _model
from tests.conftest import tiny_decoder
from trainer.transfer.methods import METHODS
from trainer.transfer.problem import Problem, assemble


@pytest.mark.parametrize("method", ["fvt", "random", "scratch"])
@pytest.mark.parametrize("factorise", [FactoriseConfig(), FactoriseConfig(rank=8)], ids=["whole", "factors"])
def test_the_source_s_format_is_kept_and_verified(problem: Problem, tmp_path: Any, method: str, factorise) -> None:
    """A bf16 model becomes a bf16 model, every matrix of it; it was saved in fp32, at twice the size."""
    source, made = str(tmp_path / "source"), str(tmp_path / "made")
    tiny_decoder(problem.source, "llama", tied=False).bfloat16().save_pretrained(source)
    problem.source.save_pretrained(source)
    plan = assemble(problem, METHODS[method].rows(problem, METHODS[method].config()), method)
    config = ScionConfig(
        text="", pairs="", test_pairs="", output="", source_model=source, method=method,
        transfer=TransferConfig(factorise=factorise),
    )  # fmt: skip
    transfer.write(config, problem, plan, made)
    assert {weight.dtype for weight in load_file(f"{made}/model.safetensors").values()} == {torch.bfloat16}
    if factorise.rank is None:
        plan.save(made)
        findings = _model(made, {"source_model": source})
        assert [finding for finding in findings if not finding.ok] == []
        assert np.isfinite(load_file(f"{made}/model.safetensors")["lm_head.weight"].float().numpy()).all()


def test_texts_come_by_language_where_each_has_pairs(monkeypatch) -> None:
    lines = [("el", "α"), ("tr", "b"), ("el", "γ")]
    monkeypatch.setattr("ray_jobs.shard.training_text", lambda config: iter(lines))
    training = Pairs(ids=["1", "2"], anchors=["one", "two"], positives=["ένα", "iki"], negatives=[[], []], langs=["el", "tr"])
    found = transfer._by_language(ScionConfig(), training, {"el", "tr"})
    assert {lang: (list(part.corpus()), part.anchors, part.positives) for lang, part in found.items()} == {
        "el": (["α", "γ"], ["one"], ["ένα"]), "tr": (["b"], ["two"], ["iki"]),
    }  # fmt: skip
    assert transfer._by_language(ScionConfig(), training, {"el", "ja"}) == {}
    assert transfer._by_language(ScionConfig(), training, {"el"}) == {}
