"""Every objective of the table keeps the contract in `objectives/objective.py`."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.objectives import OBJECTIVES
from trainer.objectives.objective import NO_PARTNER, Gathered, Needs, Objective, PairVectors, TokenStates

B, D, H, V, M = 4, 7, 8, 40, 6


@pytest.fixture(params=sorted(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param].config()


def unit(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, H, generator=generator), dim=1).requires_grad_()


def inputs(needs: Needs, seed: int = 0) -> tuple[Any, Any, list[torch.Tensor]]:
    """Representations, a batch, and the tensors that learn."""
    generator = torch.Generator().manual_seed(seed)
    if needs.token_states:
        states = torch.randn(M, H, generator=generator, requires_grad=True)
        weight = torch.randn(V, H, generator=generator, requires_grad=True)
        labels = torch.randint(V, (M,), generator=generator)
        return TokenStates(states, weight, None), SimpleNamespace(labels=labels), [states, weight]
    anchors, documents = unit(B, generator), unit(D, generator)
    pairs, owners = torch.arange(B), torch.arange(D) % B
    texts = 100 + torch.arange(D)
    partners = torch.where(torch.arange(D) < B, owners, NO_PARTNER)
    sides = [
        Gathered(anchors, anchors, pairs, 100 + pairs, pairs, torch.ones(B), 0),
        Gathered(documents, documents, texts, partners, owners, torch.ones(D), 0),
    ]
    scores, teacher = torch.randn(D, generator=generator), torch.randn(B + D, H, generator=generator)
    batch = SimpleNamespace(weights=torch.ones(B), owners=owners, scores=scores, teacher=teacher)
    return PairVectors(*sides), batch, [anchors, documents]


def test_it_names_what_it_needs(objective: Objective) -> None:
    assert objective.needs.token_states != objective.needs.vectors


def test_a_loss_for_each_target_in_fp32(objective: Objective) -> None:
    reps, batch, _ = inputs(objective.needs)
    losses = objective(reps, batch)
    assert losses.dtype == torch.float32
    assert losses.shape == ((M if objective.needs.token_states else B),)
    assert losses.isfinite().all()


def test_all_that_it_reads_learns(objective: Objective) -> None:
    reps, batch, leaves = inputs(objective.needs)
    objective(reps, batch).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_the_same_inputs_give_the_same_losses(objective: Objective) -> None:
    one, other = (objective(*inputs(objective.needs)[:2]) for _ in range(2))
    assert torch.equal(one, other)


def test_a_pair_of_weight_0_has_no_loss(objective: Objective) -> None:
    if objective.needs.token_states:
        pytest.skip("its targets have no weights")
    reps, batch, _ = inputs(objective.needs)
    batch.weights[1] = 0.0
    assert objective(reps, batch)[1] == 0.0


def test_its_settings_are_a_frozen_dataclass(objective: Objective) -> None:
    assert dataclasses.is_dataclass(objective)
    assert type(objective).__dataclass_params__.frozen  # type: ignore[attr-defined]
