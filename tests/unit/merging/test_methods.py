"""Each merge method against its formula by brute force, in NumPy, one number at a time where the method works on tensors."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import ConfigError, ModelError
from trainer.merging.greedy_soup import GreedySoup
from trainer.merging.lm_cocktail import LmCocktail
from trainer.merging.merge import Column, Merge, Models
from trainer.merging.model_stock import ModelStock
from trainer.merging.self_positioning import SelfPositioning
from trainer.merging.slerp import Slerp
from trainer.merging.task_arithmetic import TaskArithmetic
from trainer.merging.ties import Ties
from trainer.merging.uniform import Uniform

SHAPES = ((7, 5), (11,), (2, 3, 4), ())


def model(seed: int, spread: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * spread for shape in SHAPES]


def trained(base: list[torch.Tensor], count: int, spread: float = 0.1) -> list[list[torch.Tensor]]:
    """Models near the base that share half of what they learnt."""
    common = model(100, spread)
    return [
        [one + both + own for one, both, own in zip(base, common, model(101 + k, spread), strict=True)] for k in range(count)
    ]


def merge(method: Merge, models: list[list[torch.Tensor]], base: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    columns = [Column([one[place] for one in models], None if base is None else base[place]) for place in range(len(models[0]))]
    recipe = method(Models(count=len(models), columns=lambda: iter(columns), score=lambda weights: 0.0, search=lambda: ()))
    return [recipe.merge(column) for column in columns]


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])


def test_task_arithmetic_with_equal_weights_is_the_uniform_average() -> None:
    base = model(0)
    models = trained(base, 4)
    found = flat(merge(TaskArithmetic(weights=(0.25,)), models, base))
    assert np.abs(found - flat(merge(Uniform(), models))).max() < 1e-15


def test_task_arithmetic_adds_and_unlearns() -> None:
    base, weights = model(0), (0.5, -1.0, 2.0)
    models = trained(base, 3)
    expected = flat(base) + sum(w * (flat(one) - flat(base)) for w, one in zip(weights, models, strict=True))
    assert np.abs(flat(merge(TaskArithmetic(weights=weights), models, base)) - expected).max() < 1e-15


def test_task_arithmetic_refuses_weights_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="2 weights do not fit 3 models"):
        merge(TaskArithmetic(weights=(0.5, 0.5)), trained(model(0), 3), model(0))
    with pytest.raises(ConfigError, match="weights are empty"):
        TaskArithmetic(weights=())


def ties_by_hand(models: list[np.ndarray], base: np.ndarray, density: float, scale: float) -> np.ndarray:
    """Algorithm 1 of the paper on the flattened models."""
    vectors = []
    for one in models:
        vector = one - base
        kept = max(1, int(density * len(vector)))
        smallest = np.sort(np.abs(vector).astype(np.float32))[::-1][kept - 1]
        vectors.append(np.where(np.abs(vector).astype(np.float32) >= smallest, vector, 0.0))
    found = base.copy()
    for place in range(len(base)):
        elected = np.sign(sum(vector[place] for vector in vectors))
        agreeing = [vector[place] for vector in vectors if np.sign(vector[place]) == elected and elected != 0]
        found[place] += scale * float(np.mean(agreeing)) if agreeing else 0.0
    return found


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_ties_is_the_paper_on_the_whole_model(density: float, count: int) -> None:
    base = model(0)
    models = trained(base, count)
    expected = ties_by_hand([flat(one) for one in models], flat(base), density, 0.7)
    assert np.abs(flat(merge(Ties(density=density, scale=0.7), models, base)) - expected).max() < 1e-14


@given(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=4, max_size=40), st.floats(0.05, 1.0))
def test_ties_keeps_values_that_equal_the_smallest_kept_one(values: list[float], density: float) -> None:
    changes = [torch.tensor(values), torch.tensor(values[::-1])]
    base = torch.zeros(len(values))
    found = merge(Ties(density=density), [[one] for one in changes], [base])
    expected = ties_by_hand([one.double().numpy() for one in changes], base.double().numpy(), density, 1.0)
    assert np.abs(flat(found) - expected).max() < 1e-15


def test_ties_leaves_the_base_where_changes_cancel() -> None:
    base = torch.tensor([1.0, 2.0])
    found = merge(Ties(density=1.0), [[base + torch.tensor([0.5, 0.5])], [base + torch.tensor([-0.5, 0.5])]], [base])
    assert found[0].tolist() == [1.0, 2.5]


@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 1.0])
def test_slerp_goes_along_the_arc(position: float) -> None:
    """On unit vectors: the angle to the first is the share of the whole angle, and the length stays 1."""
    first, second = ([tensor / tensor.norm() for tensor in model(seed)] for seed in (1, 2))
    for one, other, found in zip(first[:3], second[:3], merge(Slerp(position=position), [first, second]), strict=False):
        whole = math.acos(float((one.double() * other.double()).sum() / one.double().norm() / other.double().norm()))
        walked = math.acos(min(1.0, float((one.double() * found).sum() / one.double().norm() / found.norm())))
        assert abs(walked - position * whole) < 1e-6
        assert abs(float(found.norm()) - 1) < 1e-6


def test_slerp_of_near_models_is_their_line() -> None:
    base = model(1)
    for spread in (1e-3, 1e-5, 1e-7, 0.0):
        near = [tensor + spread * other for tensor, other in zip(base, model(2), strict=True)]
        expected = 0.7 * flat(base) + 0.3 * flat(near)
        assert np.abs(flat(merge(Slerp(position=0.3), [base, near])) - expected).max() <= spread**2 + 1e-12


def test_slerp_takes_tensors_of_zeros() -> None:
    found = merge(Slerp(), [[torch.zeros(3)], [torch.tensor([2.0, 0.0, 4.0])]])
    assert found[0].tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_the_paper_for_each_tensor(count: int) -> None:
    base = model(0)
    models = trained(base, count)
    for place, found in enumerate(merge(ModelStock(), models, base)):
        start = base[place].double().numpy().ravel()
        changes = [one[place].double().numpy().ravel() - start for one in models]
        cosines = [
            changes[i] @ changes[j] / np.linalg.norm(changes[i]) / np.linalg.norm(changes[j])
            for i in range(count)
            for j in range(i)
        ]
        cosine = max(0.0, float(np.mean(cosines)))
        share = count * cosine / ((count - 1) * cosine + 1)
        expected = share * np.mean([start + change for change in changes], axis=0) + (1 - share) * start
        assert np.abs(found.numpy().ravel() - expected).max() < 1e-14


@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock_is_the_point_nearest_to_the_centre(count: int) -> None:
    """The geometry of the paper: models at one distance from a centre, at right angles to each other and to the base."""
    centre, base = 3.0 * torch.eye(6, dtype=torch.float64)[0], torch.zeros(6, dtype=torch.float64)
    models = [centre + 2.0 * torch.eye(6, dtype=torch.float64)[1 + k] for k in range(count)]
    plane = torch.stack(models, dim=1)
    nearest = plane @ torch.linalg.lstsq(plane, centre[:, None]).solution[:, 0]
    found = merge(ModelStock(), [[one] for one in models], [base])[0]
    assert (found - nearest).abs().max() < 1e-14


def test_model_stock_keeps_the_base_where_models_contradict_each_other() -> None:
    base, change = torch.ones(4), torch.tensor([1.0, -1.0, 2.0, 0.0])
    assert torch.equal(merge(ModelStock(), [[base + change], [base - change]], [base])[0], base.double())


@pytest.mark.parametrize(
    "method", [TaskArithmetic(weights=(1 / 3,)), Ties(density=1.0), ModelStock(), Uniform(), LmCocktail(), GreedySoup()]
)
def test_equal_models_give_the_model_whatever_the_base(method: Merge) -> None:
    one = model(1)
    found = merge(method, [one] * 3, model(0) if method.needs.base else None)
    assert all(torch.allclose(tensor, other.double(), rtol=0, atol=1e-15) for tensor, other in zip(found, one, strict=True))


def scored(method: Merge, score: dict[tuple[int, ...], float]) -> tuple[tuple[float, ...], list[tuple[int, ...]]]:
    """The weights that a method chooses among three models, and the mixtures that it measured."""
    asked = []

    def measure(weights: Sequence[float]) -> float:
        members = tuple(place for place, weight in enumerate(weights) if weight)
        assert sum(weights) == pytest.approx(1)
        asked.append(members)
        return score[members]

    recipe = method(Models(count=3, columns=lambda: iter(()), score=measure, search=lambda: ()))
    assert recipe.weights is not None
    return recipe.weights, asked


def test_greedy_soup_adds_what_does_not_hurt_from_the_best_on() -> None:
    score = {(0,): 0.5, (1,): 0.9, (2,): 0.7, (1, 2): 0.9, (0, 1, 2): 0.8}
    weights, asked = scored(GreedySoup(), score)
    assert weights == (0.0, 0.5, 0.5)
    assert asked == [(0,), (1,), (2,), (1, 2), (0, 1, 2)]


def test_greedy_soup_skips_a_model_and_goes_on() -> None:
    score = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (0, 1): 0.85, (0, 2): 0.95}
    assert scored(GreedySoup(), score)[0] == (0.5, 0.0, 0.5)


def test_lm_cocktail_is_a_softmax_of_losses() -> None:
    losses = np.array([1.0, 3.0, 0.2])
    weights, _ = scored(LmCocktail(temperature=2.0), {(place,): loss for place, loss in enumerate(losses)})
    expected = np.exp(-losses / 2.0) / np.exp(-losses / 2.0).sum()
    assert np.abs(np.array(weights) - expected).max() < 1e-15


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Ties, {"density": 0.0}, "density is a share above 0"),
        (Slerp, {"position": 1.5}, "position must lie between 0 and 1"),
        (LmCocktail, {"temperature": 0.0}, "temperature must be above 0"),
        (GreedySoup, {"probe_pairs": 1}, "probe_pairs must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(method: type, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method(**settings)


def test_weights_that_are_no_numbers_make_no_model() -> None:
    models = Models(count=2, columns=lambda: iter(()), score=lambda weights: math.nan, search=lambda: (math.nan, 0.5))
    for method in (LmCocktail(), SelfPositioning()):
        with pytest.raises(ModelError, match="not finite"):
            method(models)
