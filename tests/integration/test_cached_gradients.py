"""GradCache on every ZeRO stage: the update is that of the whole batch in one process, by plain autograd."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from data_pipeline.errors import TrainingError
from data_pipeline.pairs.batch import PairBatch
from tests.integration.test_golden_losses import tiny
from tests.ranks import on_ranks
from trainer.config.train import TrainConfig
from trainer.models.dual_encoder import DualEncoder
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.nested import Nested, NestedConfig
from trainer.objectives.objective import Objective

PAIRS, VOCABULARY = 12, 300
ONE, TWO, EACH = 1 << 20, 130, 1
"""Tokens of a chunk: the whole batch is one, several texts share one, and each text is one."""
OBJECTIVES: dict[str, Objective] = {
    "two directions": InfoNce(),
    "four directions": InfoNce(
        directions=("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"), partition="joint", focal=0.5, hardness=5.0
    ),
    "weights and mixtures": InfoNce(progressive=True, mixed_list=True, margin=0.3),
    "nested": Nested(inner=InfoNce(), config=NestedConfig(widths=(8, 4), width_weights=(1.0, 0.5), exits=(1,))),
}


def pair_table(rank: int, world: int) -> pa.Table:
    """The rank's share of the pairs: ragged hard negatives, a repeated positive, a repeated anchor, and a row of padding."""
    generator = np.random.default_rng(7)
    ids = lambda: generator.integers(5, VOCABULARY, generator.integers(3, 24)).tolist()  # noqa: E731
    negatives = [[ids() for _ in range(generator.integers(0, 3))] for _ in range(PAIRS)]
    anchors, positives = [ids() for _ in range(PAIRS)], [ids() for _ in range(PAIRS)]
    anchor_keys, positive_keys = list(range(PAIRS)), list(range(100, 100 + PAIRS))
    positives[7], positive_keys[7] = positives[2], positive_keys[2]
    anchors[10], anchor_keys[10] = anchors[1], anchor_keys[1]
    kind = pa.list_(pa.int32())
    table = pa.table({
        "anchor": pa.array(anchors, kind), "positive": pa.array(positives, kind),
        "negatives": pa.array(negatives, pa.list_(kind)), "anchor_key": anchor_keys, "positive_key": positive_keys,
        "negative_keys": pa.array([[1000 + 10 * pair + n for n in range(len(row))] for pair, row in enumerate(negatives)],
                                  pa.list_(pa.int64())),
        "stream": [0] * PAIRS, "weight": pa.array([1.0] * (PAIRS - 1) + [0.0], pa.float32()),
    })  # fmt: skip
    share = PAIRS // world
    return table.slice(rank * share, share)


def encoder(objective: str, dropout: float) -> DualEncoder:
    torch.manual_seed(3)
    model = tiny("bert").base_model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return DualEncoder(model, "mean", OBJECTIVES[objective])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of the table."""

    stage: int
    chunk_tokens: int
    passes: str = "cached"
    objective: str = "two directions"
    dropout: float = 0.0


def update(cell: Cell) -> dict[str, torch.Tensor]:
    """By how much one step of SGD with a rate of 1 changes each weight, on rank 0."""
    import deepspeed

    from trainer.deepspeed_bridge.settings import deepspeed_settings
    from trainer.engine.passes import PASSES
    from trainer.engine.step_clock import StepClock

    rank, world = dist.get_rank(), dist.get_world_size()
    module = encoder(cell.objective, cell.dropout)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    settings = deepspeed_settings(TrainConfig(steps=1, batch_size=PAIRS, clip=0.0, warmup_steps=0), PAIRS // world, 1)
    settings["zero_optimization"] |= {"stage": cell.stage}
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    engine: Any
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    engine.train()
    batch = PairBatch(pair_table(rank, world), 0, cell.chunk_tokens)
    torch.manual_seed(rank)
    total = batch.counts(1).sum()
    dist.all_reduce(total)
    PASSES.get(cell.passes, naive)(engine, [batch], world / float(total), torch.zeros(1, dtype=torch.float64), StepClock())
    engine.step()  # the product's step adds a guard that stage 0, which it does not offer, has no place for
    with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=cell.stage == 3):
        return {name: (before[name] - weight.detach().float()).clone() for name, weight in module.named_parameters()}


def naive(engine: Any, batches: list[Any], scale: float, sums: torch.Tensor, clock: Any) -> None:
    """What peers do: a backward pass a chunk, of which DeepSpeed believes each to be a step."""
    from trainer.engine.passes.cached import agree_on_chunks, encode_without_graph, loss_gradients

    batch, _ = agree_on_chunks(batches[0], engine.device)
    vectors, _ = encode_without_graph(engine, batch.chunks)
    _, gradients = loss_gradients(engine.module, vectors, batch, scale)
    for chunk, gradient in zip(batch.chunks, gradients, strict=True):
        engine.backward((engine(chunk) * gradient).sum())


def gradient_of_the_whole_batch(cell: Cell) -> dict[str, torch.Tensor]:
    """By one graph over the same chunks, so that dropout draws the same."""
    module = encoder(cell.objective, cell.dropout)
    module.train()
    batch = PairBatch(pair_table(0, 1), 0, cell.chunk_tokens)
    torch.manual_seed(0)
    (module(batch).sum() / batch.counts(1).sum()).backward()
    return {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in module.named_parameters()}


def largest_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative to the largest gradient of any weight."""
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 1e-3
    return max(float((found[name] - gradient).abs().max()) for name, gradient in expected.items()) / scale


CELLS = [
    Cell(stage=stage, chunk_tokens=tokens, passes=passes, objective=objective)
    for stage in (0, 1, 2, 3)
    for passes in ("cached", "cached_per_chunk")
    for tokens, objective in (
        (ONE, "two directions"),
        (TWO, "four directions"),
        (TWO, "nested"),
        (EACH, "weights and mixtures"),
    )
]


def updates(cells: list[Cell]) -> list[dict[str, torch.Tensor]]:
    return [update(cell) for cell in cells]


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_update_is_that_of_the_whole_batch(world: int) -> None:
    found = on_ranks(world, updates, CELLS)
    for cell, changes in zip(CELLS, found, strict=True):
        assert largest_error(changes, gradient_of_the_whole_batch(cell)) < 1e-5, cell


@pytest.mark.parametrize("stage", [1, 3])
def test_both_passes_over_a_chunk_drop_out_the_same(stage: int) -> None:
    cells = [Cell(stage=stage, chunk_tokens=TWO, dropout=0.1), Cell(stage=stage, chunk_tokens=TWO)]
    found = on_ranks(1, updates, cells)
    assert largest_error(found[0], gradient_of_the_whole_batch(cells[0])) < 1e-5
    assert largest_error(found[0], gradient_of_the_whole_batch(cells[1])) > 1e-2  # dropout changes the gradient


def test_the_naive_replay_is_wrong() -> None:
    """What issue 3173 of sentence-transformers is about. If DeepSpeed repairs it, the dispatch here may become simpler."""
    cells = [Cell(stage=stage, chunk_tokens=TWO, passes="naive") for stage in (1, 2)]
    for cell, changes in zip(cells, on_ranks(2, updates, cells), strict=True):
        assert largest_error(changes, gradient_of_the_whole_batch(cell)) > 0.1


def self_checks(passes: str, precision: str) -> list[str]:
    """What the check at the start says on each stage."""
    from trainer.engine.passes import PASSES
    from trainer.engine.passes.self_check import check_cached_gradient

    outcomes = []
    for stage in (1, 2, 3):
        config = TrainConfig(steps=1, batch_size=8, zero_stage=stage, precision=precision)  # type: ignore[arg-type]
        try:
            check_cached_gradient(config, PASSES.get(passes, naive))
            outcomes.append("")
        except TrainingError as error:
            outcomes.append(str(error))
    return outcomes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("passes", ["cached", "cached_per_chunk"])
def test_the_check_at_the_start_lets_a_right_gradient_pass(passes: str, precision: str) -> None:
    assert on_ranks(2, self_checks, passes, precision) == ["", "", ""]


def test_the_check_at_the_start_refuses_a_wrong_gradient() -> None:
    first, second, third = on_ranks(2, self_checks, "naive", "fp32")
    for failure in (first, second):
        assert "the gradient of a batch in several chunks is wrong by" in failure
    assert third == ""  # ZeRO-3 adds up repeated passes
