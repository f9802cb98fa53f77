"""Every merge of the table keeps the contract in `merging.merge`."""

from collections.abc import Sequence

import pytest
import torch

from trainer.merging import MERGES, Merge
from trainer.merging.merge import Column, Models, weighted_sum

SHAPES = {"w": (3, 4), "row": (5,), "scalar": (), "cube": (2, 3, 2)}
State = dict[str, torch.Tensor]


@pytest.fixture(params=sorted(MERGES))
def merge(request: pytest.FixtureRequest) -> Merge:
    return MERGES[request.param].config()


def weights(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def merged(merge: Merge, states: Sequence[State], base: State) -> State:
    """What the method makes of models; a model scores by its distance from the first."""
    columns = {name: Column([state[name] for state in states], base[name] if merge.needs.base else None) for name in states[0]}

    def score(shares: Sequence[float]) -> float:
        found = {name: weighted_sum(column.models, shares) for name, column in columns.items()}
        distance = sum(float((found[name] - states[0][name]).norm()) for name in found)
        return distance if merge.needs.probe == "loss" else -distance

    def search() -> list[float]:
        return [1 / len(states)] * len(states)

    recipe = merge(Models(count=len(states), columns=lambda: iter(columns.values()), score=score, search=search))
    assert recipe.weights is None or len(recipe.weights) == len(states)
    return {name: recipe.merge(column).float() for name, column in columns.items()}


def fitting(merge: Merge, count: int) -> int:
    return min(count, merge.needs.most or count)


def test_shapes_stay_and_numbers_are_finite(merge: Merge) -> None:
    found = merged(merge, [weights(seed) for seed in range(1, 1 + fitting(merge, 4))], weights(0))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_the_models_are_not_changed(merge: Merge) -> None:
    states, base = [weights(seed) for seed in range(1, 1 + fitting(merge, 3))], weights(0)
    merged(merge, states, base)
    for seed, state in enumerate([base, *states]):
        assert all(torch.equal(state[name], tensor) for name, tensor in weights(seed).items())


def test_a_model_merged_with_itself_is_itself(merge: Merge) -> None:
    found = merged(merge, [weights(0)] * fitting(merge, 3), weights(0))
    assert all(torch.equal(found[name], one) for name, one in weights(0).items())


def test_models_of_bf16_are_merged_in_fp32_or_fp64(merge: Merge) -> None:
    states = [{name: tensor.bfloat16() for name, tensor in weights(seed).items()} for seed in range(1, 1 + fitting(merge, 2))]
    exact = [{name: tensor.float() for name, tensor in state.items()} for state in states]
    base = {name: tensor.bfloat16() for name, tensor in weights(0).items()}
    found = merged(merge, states, base)
    expected = merged(merge, exact, {name: tensor.float() for name, tensor in base.items()})
    assert all(torch.equal(found[name], expected[name]) for name in found)
