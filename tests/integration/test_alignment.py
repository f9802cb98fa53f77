"""DeepSpeed's flat buffers align matrices at multiples of 16 bytes for any vocabulary."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from tests.ranks import on_ranks
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import initialize
from trainer.engine import setup
from trainer.models.packed_lm import PackedLM


@dataclass(frozen=True)
class Run:
    """A run of a model whose output bias has an odd number of entries."""

    folder: str
    stage: int
    apart: bool = True
    """Whether vectors have their own groups, as in every run, or precede the matrices in a single group."""


def slow(run: Run) -> list[str]:
    """The reasons that the run reports for being slow."""
    model = XLMRobertaForMaskedLM(
        XLMRobertaConfig(vocab_size=301, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )
    module = PackedLM(model, causal=False)
    if not run.apart:
        weights = sorted(module.parameters(), key=lambda weight: weight.ndim)
        initialize.make_optimizer = lambda module, config: torch.optim.AdamW(weights)
    config = TrainConfig(steps=2, batch_size=2, precision="bf16", zero_stage=run.stage)
    engine = setup.make_engine(module, config, 1, 2 // dist.get_world_size())
    assert any(weight.data_ptr() % 16 for weight in module.parameters()) != run.apart
    return setup.slow_reasons(engine.module, config)


@pytest.mark.parametrize("stage", [1, 2])
def test_matrices_are_aligned_with_an_odd_vocabulary(tmp_path: Path, stage: int) -> None:
    assert on_ranks(2, slow, Run(str(tmp_path), stage)) == []  # type: ignore[arg-type]


def test_unaligned_matrices_are_reported(tmp_path: Path) -> None:
    """One group for all weights, as in most trainers."""
    (reason,) = on_ranks(2, slow, Run(str(tmp_path), 1, apart=False))
    assert "the addresses are no multiples of 16 bytes" in reason
    assert "word_embeddings" not in reason
