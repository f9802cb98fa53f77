"""Learning rates and refusals: pure functions of the settings."""

import math

import pytest
import torch
import transformers

from data_pipeline.errors import ConfigError
from trainer.config.train import BatchPart, RateChange, TrainConfig
from trainer.deepspeed_bridge.optimizer import make_optimizer
from trainer.deepspeed_bridge.settings import deepspeed_settings


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


def test_a_rate_tuned_for_another_batch_is_scaled_with_the_square_root() -> None:
    config = TrainConfig(steps=10, batch_size=64, rate_batch=16, learning_rate=1e-3, warmup_steps=0)
    assert config.rate(0, True) == pytest.approx(2e-3)


def test_muon_has_its_own_rate_and_waits_for_the_embeddings_too() -> None:
    config = TrainConfig(steps=10, warmup_steps=0, embedding_steps=2, learning_rate=1e-3, muon_rate=0.02, clip=0.0)
    assert config.rate(0, False, muon=True) == 0.0
    assert config.rate(2, False, muon=True) == pytest.approx(20 * config.rate(2, False)) == pytest.approx(0.02 * 0.8)


def theirs(schedule: str, steps: int, warmup: int, decay: int, smallest: float) -> list[float]:
    """Rates of transformers' own schedulers, step by step; one more than there are steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = {
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "cosine": lambda: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup, steps, min_lr_rate=smallest
        ),
        "wsd": lambda: transformers.get_wsd_schedule(
            optimizer, warmup, decay, steps, decay_type="linear", min_lr_ratio=smallest
        ),
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
    }[schedule]()
    rates = []
    for _ in range(steps + 1):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "smallest"), [("linear", 0.0), ("cosine", 0.0), ("cosine", 0.1), ("wsd", 0.0), ("wsd", 0.1), ("constant", 0.0)]
)
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(20, 4, 6), (30, 0, 30), (7, 3, 1)])
def test_rates_are_those_of_transformers(schedule: str, smallest: float, steps: int, warmup: int, decay: int) -> None:
    """Theirs has a first step at rate 0, ours none: step s of our warm-up is their step s + 1, with a floor of its own."""
    decay = min(decay, steps - warmup)
    settings = {"decay_steps": decay} if schedule == "wsd" else {}
    config = TrainConfig(
        steps=steps, warmup_steps=warmup, learning_rate=0.5, schedule=schedule, smallest_rate=smallest, **settings
    )
    expected = theirs(schedule, steps, warmup, decay, smallest)
    rates = [config.rate(step, False) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([0.5 * (step + 1) / warmup for step in range(warmup)])
    assert rates[warmup:] == pytest.approx(expected[warmup:steps], abs=1e-12)


@pytest.mark.parametrize("smallest", [0.0, 0.2])
def test_a_line_to_a_smallest_rate_is_torch_s(smallest: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, smallest, total_iters=10)
    config = TrainConfig(steps=10, warmup_steps=0, learning_rate=0.5, smallest_rate=smallest)
    for step in range(10):
        assert config.rate(step, False) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_what_falls_is_measured_in_rows() -> None:
    """Of 72 rows after a warm-up of 8, the cosine is half way down where half of them are trained on."""
    config = TrainConfig(
        steps=14,
        batch_size=8,
        batch_warmup=(BatchPart(until=8, rows=4),),
        learning_rate=1.0,
        rate_batch=8,
        warmup_steps=2,
        schedule="cosine",
    )
    rows = [4] * 8 + [8] * 6
    for step in range(2, 14):
        share = 0.5 * (1 + math.cos(math.pi * (sum(rows[:step]) - 8) / 72))
        assert config.rate(step, True) == pytest.approx(math.sqrt(rows[step] / 8) * share), step


def test_a_stable_rate_does_not_depend_on_the_length_of_the_run() -> None:
    short, long = (TrainConfig(steps=steps, schedule="wsd", decay_steps=5, warmup_steps=5) for steps in (20, 50))
    assert [short.rate(step, True) for step in range(15)] == [long.rate(step, True) for step in range(15)]
    assert short.rate(16, True) < long.rate(16, True)
    assert TrainConfig(steps=50, schedule="wsd") == TrainConfig(steps=50, schedule="wsd", decay_steps=None)
    tenth, five = TrainConfig(steps=50, schedule="wsd"), TrainConfig(steps=50, schedule="wsd", decay_steps=5)
    assert [tenth.rate(step, True) for step in range(50)] == [five.rate(step, True) for step in range(50)]


def test_rates_change_by_a_factor_from_a_step_on() -> None:
    changes = (RateChange(since=4, factor=0.5), RateChange(since=8, factor=0.1))
    plain, changed = TrainConfig(steps=12), TrainConfig(steps=12, rate_changes=changes)
    factors = [changed.rate(step, True) / plain.rate(step, True) for step in range(12)]
    assert factors == pytest.approx([1] * 4 + [0.5] * 4 + [0.1] * 4)


def test_adamw_has_the_betas_and_eps_that_are_asked_for() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(3, 2), torch.nn.Linear(2, 2))
    module.get_input_embeddings = lambda: module[0]  # type: ignore[assignment]
    module.get_output_embeddings = lambda: None  # type: ignore[assignment]
    groups = make_optimizer(module, TrainConfig(betas=(0.8, 0.95), eps=1e-6)).param_groups
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.8, 0.95), 1e-6)}
    groups = make_optimizer(module, TrainConfig()).param_groups
    torch_defaults = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).defaults
    assert {(group["betas"], group["eps"]) for group in groups} == {(torch_defaults["betas"], torch_defaults["eps"])}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay_steps": 3}, "schedule=wsd, not of linear"),
        ({"schedule": "wsd", "decay_steps": 39, "steps": 40}, "between 1 and the 38 steps after the warm-up, got 39"),
        ({"smallest_rate": 1e-5, "learning_rate": 1e-4, "betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "betas must be two"),
        ({"eps": 0.0}, "eps above 0"),
        ({"smallest_rate": 2.0}, "a share of the highest, between 0 and 1, got 2.0"),
        ({"rate_changes": (RateChange(since=8, factor=0.5), RateChange(since=4, factor=0.5))}, "rate_changes must rise"),
        ({"rate_changes": (RateChange(since=8, factor=0.0),)}, "factors be above 0"),
        ({"hpz": 2, "zero_stage": 2}, "zero_stage=3"),
        ({"offload": "all", "zero_stage": 1}, "zero_stage=3"),
        ({"muon_rate": 0.02}, "clip=0"),
        ({"muon_rate": 0.02, "clip": 0.0, "zero_stage": 3}, "zero_stage=1 or 2"),
        ({"muon_rate": 0.02, "clip": 0.0, "offload": "optimizer"}, "offload=null"),
        ({"muon_rate": 0.0, "clip": 0.0}, "muon_rate"),
        ({"rate_batch": 0}, "rate_batch"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"micro_batch": 0}, "micro_batch"),
    ],
)
def test_settings_that_contradict_are_rejected_with_a_fix(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_a_graph_is_compiled_where_it_pays_or_where_it_is_asked_for() -> None:
    assert [TrainConfig(zero_stage=stage).uses_compile(gpu=True) for stage in (1, 2, 3)] == [True, True, False]
    assert not TrainConfig().uses_compile(gpu=False)
    assert TrainConfig(compile=True).uses_compile(gpu=False)


def test_many_micro_batches_are_summed_in_fp32() -> None:
    dtypes = [
        deepspeed_settings(TrainConfig(precision=kind), 1, count)["data_types"]["grad_accum_dtype"]
        for kind in ("fp32", "bf16")
        for count in (1, 16)
    ]
    assert dtypes == [None, None, None, "fp32"]
    stages = [
        deepspeed_settings(TrainConfig(precision="bf16", zero_stage=stage), 1, count)["zero_optimization"]["stage"]
        for stage in (1, 2, 3)
        for count in (1, 16)
    ]
    assert stages == [1, 2, 2, 2, 3, 3]
