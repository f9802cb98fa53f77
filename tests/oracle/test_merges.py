"""Merges against mergekit 0.1.5. Each difference from it has a reason, and a test of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from mergekit.merge_methods import merge_state_dicts

from tests.oracle.conftest import apart
from trainer.merging import MERGES
from trainer.merging.merge import Column, Models

SHAPES = {"embeddings": (300, 16), "dense": (16, 64), "bias": (64,), "cube": (3, 4, 5)}
State = dict[str, torch.Tensor]


def state(seed: int, spread: float = 1.0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * spread for name, shape in shapes.items()}


def trained(base: State, count: int, spread: float = 0.1) -> list[State]:
    """Models near the base that share a part of what they learnt."""
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    changes = [state(seed, spread, shapes) for seed in range(100, 101 + count)]
    return [{name: base[name] + changes[0][name] + own[name] for name in base} for own in changes[1:]]


def ours(name: str, models: Sequence[State], base: State | None = None, **settings: Any) -> torch.Tensor:
    """All merged tensors, one after the other."""
    columns = [Column([one[key] for one in models], None if base is None else base[key]) for key in models[0]]
    recipe = MERGES[name].config(**settings)(
        Models(count=len(models), columns=lambda: iter(columns), score=lambda weights: 0.0)
    )
    return torch.cat([recipe.merge(column).flatten() for column in columns])


def theirs(name: str, models: Sequence[State], base: State | None = None, **parameters: Any) -> torch.Tensor:
    """The same by mergekit, in fp64."""
    every = dict(enumerate(models)) | ({} if base is None else {"base": base})
    found = merge_state_dicts(every, name, base=None if base is None else "base", parameters=parameters)
    return torch.cat([found[key].flatten() for key in models[0]])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_uniform_is_its_linear(count: int) -> None:
    models = [state(seed) for seed in range(count)]
    assert apart(ours("uniform", models), theirs("linear", models, weight=1.0)) < 1e-14


@pytest.mark.parametrize("weights", [(0.4,), (0.5, -0.2, 1.5)])
def test_task_arithmetic_is_its_own(weights: tuple[float, ...]) -> None:
    base = state(0)
    models = trained(base, 3)
    counted = dict(enumerate(weights * 3 if len(weights) == 1 else weights))
    expected = theirs("task_arithmetic", models, base, weight=counted)
    assert apart(ours("task_arithmetic", models, base, weights=weights), expected) < 1e-14


@pytest.mark.parametrize("density", [0.1, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_ties_is_its_own_on_a_single_tensor(count: int, density: float) -> None:
    base = state(0, shapes={"only": (40, 30)})
    models = trained(base, count)
    expected = theirs("ties", models, base, weight=1.0, density=density, **{"lambda": 0.8})
    assert apart(ours("ties", models, base, density=density, scale=0.8), expected) < 1e-14


def test_ties_trims_the_whole_model_and_mergekit_each_tensor() -> None:
    """The paper takes the largest changes of a model: a tensor that changed little keeps none of them."""
    base = {"much": torch.zeros(50, dtype=torch.float64), "little": torch.zeros(50, dtype=torch.float64)}
    change = {"much": state(1, 1.0, {"much": (50,)})["much"] + 5, "little": state(2, 1e-3, {"little": (50,)})["little"]}
    found, expected = ours("ties", [change], base, density=0.2), theirs("ties", [change], base, weight=1.0, density=0.2)
    assert [int((part != 0).sum()) for part in found.split(50)] == [20, 0]
    assert [int((part != 0).sum()) for part in expected.split(50)] == [10, 10]


def test_ties_leaves_the_base_where_mergekit_takes_the_positive_change() -> None:
    base = {"only": torch.zeros(1, dtype=torch.float64)}
    models = [{"only": torch.tensor([change], dtype=torch.float64)} for change in (0.5, -0.5)]
    assert ours("ties", models, base, density=1.0).item() == 0.0
    assert theirs("ties", models, base, weight=1.0).item() == 0.5


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_slerp_is_its_own(position: float) -> None:
    first, second = state(1), state(2)
    assert apart(ours("slerp", [first, second], position=position), theirs("slerp", [second], first, t=position)) < 1e-14


def test_slerp_of_near_models_goes_along_the_arc_where_mergekit_goes_straight() -> None:
    """mergekit is linear below an angle of 1.8 degrees; the arc differs from the line by about angle ** 2 / 8."""
    base = state(1)
    near = trained(base, 1, spread=0.01)[0]
    found, expected = ours("slerp", [base, near], position=0.5), theirs("slerp", [near], base, t=0.5)
    linear = ours("uniform", [base, near])
    assert apart(linear, expected) < 1e-14
    assert 1e-7 < apart(found, expected) < 1e-3


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_its_own(count: int) -> None:
    base = state(0)
    models = trained(base, count)
    assert apart(ours("model_stock", models, base), theirs("model_stock", models, base)) < 1e-14


def test_model_stock_also_follows_small_changes_which_mergekit_takes_for_none() -> None:
    """mergekit divides by at least 1e-6: with lengths of 1e-4 the cosine of equal changes is 0.01."""
    base = {"bias": torch.zeros(8, dtype=torch.float64)}
    change = {"bias": torch.full((8,), 1e-4 / 8**0.5, dtype=torch.float64)}
    found, expected = ours("model_stock", [change] * 2, base), theirs("model_stock", [change] * 2, base)
    assert apart(found, change["bias"]) < 1e-18
    assert abs(float(expected.norm() / change["bias"].norm()) - 2 * 0.01 / 1.01) < 1e-6


def test_model_stock_keeps_the_base_where_mergekit_goes_beyond_it() -> None:
    base = {"only": torch.zeros(2, dtype=torch.float64)}
    models = [{"only": torch.tensor(change, dtype=torch.float64)} for change in ([1.0, 0.3], [-1.0, 0.3])]
    assert ours("model_stock", models, base).norm() == 0.0
    assert theirs("model_stock", models, base)[1] < -0.5
