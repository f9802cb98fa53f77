"""Learning rates and refusals: pure functions of the settings."""

import math

import pytest

from data_pipeline.errors import ConfigError
from trainer.engine.config import BatchPart, TrainConfig


def test_without_a_batch_warm_up_the_rate_rises_and_falls_by_steps() -> None:
    config = TrainConfig(steps=20, batch_size=7, learning_rate=0.5, warmup_steps=4)
    rates = [config.rate(step, False) for step in range(20)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.5 * (20 - step) / 16 for step in range(4, 20)])


def test_smaller_batches_have_a_smaller_rate_and_take_less_of_the_warm_up() -> None:
    parts = (BatchPart(until=4, rows=4), BatchPart(until=6, rows=8))
    config = TrainConfig(steps=10, batch_size=16, batch_warmup=parts, learning_rate=1.0, warmup_steps=6)
    rows = [4, 4, 4, 4, 8, 8, 16, 16, 16, 16]
    for step, size in enumerate(rows):
        before = sum(rows[:step])
        share = (before + size) / 32 if step < 6 else (96 - before) / 64
        assert config.rate(step, True) == pytest.approx(math.sqrt(size / 16) * share), step


def test_a_rate_that_was_found_for_another_batch_is_scaled_with_the_root() -> None:
    config = TrainConfig(steps=10, batch_size=64, rate_batch=16, learning_rate=1e-3, warmup_steps=0)
    assert config.rate(0, True) == pytest.approx(2e-3)


def test_muon_has_a_rate_of_its_own_and_waits_for_the_embeddings_as_well() -> None:
    config = TrainConfig(steps=10, warmup_steps=0, embedding_steps=2, learning_rate=1e-3, muon_rate=0.02, clip=0.0)
    assert config.rate(0, False, muon=True) == 0.0
    assert config.rate(2, False, muon=True) == pytest.approx(20 * config.rate(2, False)) == pytest.approx(0.02 * 0.8)


@pytest.mark.parametrize(("settings", "said"), [
    ({"hpz": 2, "zero_stage": 2}, "zero_stage=3"),
    ({"offload": "all", "zero_stage": 1}, "zero_stage=3"),
    ({"muon_rate": 0.02}, "clip=0"),
    ({"muon_rate": 0.02, "clip": 0.0, "zero_stage": 3}, "zero_stage=1 or 2"),
    ({"muon_rate": 0.02, "clip": 0.0, "offload": "optimizer"}, "offload=null"),
    ({"muon_rate": 0.0, "clip": 0.0}, "muon_rate"),
    ({"rate_batch": 0}, "rate_batch"),
    ({"zero_stage": 4}, "zero_stage"),
    ({"micro_batch": 64, "batch_size": 32}, "micro_batch"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_way_out(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**settings)


def test_a_graph_is_compiled_where_it_pays_or_where_it_is_asked_for() -> None:
    assert [TrainConfig(zero_stage=stage).compiles(gpu=True) for stage in (1, 2, 3)] == [True, True, False]
    assert not TrainConfig().compiles(gpu=False)
    assert TrainConfig(compile=True).compiles(gpu=False)


def test_many_micro_batches_are_summed_in_fp32() -> None:
    found = [TrainConfig(precision=kind).deepspeed(1, count)["data_types"]["grad_accum_dtype"]
             for kind in ("fp32", "bf16") for count in (1, 16)]  # fmt: skip
    assert found == [None, None, None, "fp32"]
