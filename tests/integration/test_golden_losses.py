"""Losses of three tiny runs equal those in `tests/golden/losses.json`: a refactoring leaves them unchanged.

`UPDATE_GOLDEN=1 make test` rewrites the file; the change then shows in the review.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from data_pipeline.feed.masking import Masker
from data_pipeline.feed.target_batch import NextToken
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.shards import format
from data_pipeline.shards.pack import concat_split
from data_pipeline.tokenizers.ragged import Ragged
from tests.families.configs import VOCABULARY, tiny
from tests.ranks import on_ranks
from trainer.config.train import TrainConfig
from trainer.models.dual_encoder import DualEncoder
from trainer.models.packed_lm import PackedLM

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
STEPS, LENGTH, WORLD = 20, 32, 2
CLOSE = 1e-5
"""Relative tolerance. Other processors round differently: on one that the file does not name, it is 1e-3."""


def text_rows(step: int, rank: int) -> pa.Table:
    """Four packed rows of random documents."""
    draw = np.random.default_rng([step, rank])
    sizes = draw.integers(5, 40, 8)
    rows = concat_split(Ragged.of([draw.integers(5, VOCABULARY, size).tolist() for size in sizes]), LENGTH, 1)
    table = format.text_rows(rows, VOCABULARY).slice(0, 4)
    tags = {"stream": [0] * 4, "epoch": [step] * 4, "row": list(range(4)), "weight": [1.0] * 4}
    for name, values in tags.items():
        table = table.append_column(name, pa.array(values))
    return table


def pair_rows(step: int, rank: int) -> pa.Table:
    """Four pairs of random ids; the first has a hard negative."""
    draw = np.random.default_rng([step, rank])

    def ids() -> list[int]:
        return draw.integers(5, VOCABULARY, draw.integers(4, 12)).tolist()

    kind, first = pa.list_(pa.int32()), 100 * (step * WORLD + rank)
    return pa.table(
        {
            "anchor": pa.array([ids() for _ in range(4)], kind),
            "positive": pa.array([ids() for _ in range(4)], kind),
            "negatives": pa.array([[ids()], [], [], []], pa.list_(kind)),
            "anchor_key": pa.array(range(first, first + 4)),
            "positive_key": pa.array(range(first + 10, first + 14)),
            "negative_keys": pa.array([[first + 20], [], [], []]),
            "stream": [0] * 4,
            "weight": pa.array([1.0] * 4, pa.float32()),
        }
    )


def losses(kind: str) -> list[float]:
    """Twenty steps on two ranks under ZeRO-1, with clipping, warm-up and decay."""
    from trainer.engine.setup import make_engine
    from trainer.engine.step import optimizer_step, set_rates

    torch.manual_seed(0)
    masker = Masker(length=LENGTH, mask_id=4, special_ids=(0, 1, 2, 3, 4), vocab_size=VOCABULARY, probability=0.2, seed=1)
    modules: dict[str, tuple[Any, Any]] = {
        "masked": (lambda: PackedLM(tiny("bert"), False, 0.2), lambda *at: masker(text_rows(*at))),
        "causal": (lambda: PackedLM(tiny("llama"), True), lambda *at: NextToken(length=LENGTH)(text_rows(*at))),
        "contrastive": (lambda: DualEncoder(tiny("bert").base_model, "mean"), lambda *at: PairBatch(pair_rows(*at), 0)),
    }
    module, batch = modules[kind]
    config = TrainConfig(steps=STEPS, batch_size=8, learning_rate=3e-3, warmup_steps=4, zero_stage=1)
    engine = make_engine(module(), config, 4, 1)
    values = []
    for step in range(STEPS):
        torch.manual_seed(step)
        set_rates(engine, config, step)
        values.append(optimizer_step(engine, [batch(step, dist.get_rank())], 1, 0, False).loss)
    return values


def processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.partition('+')[0]}"


@pytest.mark.parametrize("kind", ["masked", "causal", "contrastive"])
def test_the_losses_are_those_of_the_file(kind: str) -> None:
    actual = on_ranks(WORLD, losses, kind)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        golden[kind] = {"processor": processor(), "losses": actual}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    expected = golden[kind]
    close = CLOSE if expected["processor"] == processor() else 1e-3
    assert actual == pytest.approx(expected["losses"], rel=close)
    assert actual[-1] < actual[0]
