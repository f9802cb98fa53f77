"""The search of weights inside a ZeRO engine, against autograd through the merge of whole models."""

import math
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from data_pipeline.pairs.shards import tokenize_pairs
from data_pipeline.pairs.text_pairs import Pairs
from tests.conftest import FAMILIES, tiny_model
from tests.ranks import on_ranks
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.engine import position_search
from trainer.engine.position_search import Search
from trainer.merging import probe
from trainer.merging.self_positioning import Position, SelfPositioning
from trainer.models.dual_encoder import DualEncoder
from trainer.tasks.contrastive import ContrastiveTask

PAIRS, STEPS = 11, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> Path:
    """A base and two models that differ from it."""
    folder, tokenizer = tmp_path_factory.mktemp("position"), FAMILIES["wordpiece"](english)
    for number, name in enumerate(("base", "a", "b")):
        model, generator = tiny_model(tokenizer).bert, torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in model.parameters() if number else ():
                weight += 0.2 * torch.randn(weight.shape, generator=generator)
        Embedder(model, tokenizer, EmbedderSpec(max_length=24)).save(str(folder / name))
    return folder


def given(folder: Path, english: list[str], **settings: float) -> Search:
    anchors, positives = english[:PAIRS], english[PAIRS : 2 * PAIRS]
    pairs = Pairs(ids=anchors, anchors=anchors, positives=positives, negatives=[[]] * PAIRS)
    task = ContrastiveTask(
        model_uri=str(folder / "base"), spec=EmbedderSpec(max_length=24), objective=probe.LOSS, chunk_tokens=64
    )
    tokenizer = Embedder.load(str(folder / "base")).tokenizer
    return Search(
        task=task,
        models=(str(folder / "a"), str(folder / "b")),
        settings=SelfPositioning(steps=STEPS, batch_size=PAIRS, **settings),  # type: ignore[arg-type]
        pairs=tokenize_pairs(pairs, tokenizer, 24),
        seed=0,
        threads=1,
    )


def by_autograd(search: Search, folder: Path) -> list[float]:
    """The weights, with a graph through theta_0 + lambda sum_k alpha_k tau_k. Each step has all pairs, in any order."""
    models = [Embedder.load(str(folder / name)).model for name in ("base", "a", "b")]
    base, *others = [{name: weight.detach() for name, weight in model.named_parameters()} for model in models]
    module = DualEncoder(models[0], "mean", probe.LOSS).eval()
    shares = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(math.log(math.e - 1), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([shares, scale], lr=search.settings.learning_rate)
    collate = search.task.collator()
    rows = search.pairs.append_column("stream", [[0] * PAIRS]).append_column("weight", [[1.0] * PAIRS])
    for _ in range(STEPS):
        length = torch.nn.functional.softplus(scale)
        weights = (length * shares.softmax(dim=0)).float()
        merged = {
            f"model.{name}": value + sum(w * (other[name] - value) for w, other in zip(weights, others, strict=True))
            for name, value in base.items()
        }
        loss = functional_call(module, merged, (collate(rows),)).mean()
        adam.zero_grad()
        (loss + search.settings.penalty * (length - 1).abs()).backward()
        adam.step()
    return (torch.nn.functional.softplus(scale) * shares.softmax(dim=0)).tolist()


def weights_on_ranks(searches: list[Search]) -> list[list[float]]:
    return [position_search.search_worker(search)["weights"] for search in searches]


@pytest.mark.parametrize("world", [1, 2])
def test_the_weights_are_those_of_autograd_through_the_merge(world: int, folder: Path, english: list[str]) -> None:
    """Under every stage; with two ranks the last row of the batch is padding."""
    searches = [given(folder, english, zero_stage=stage, learning_rate=0.3, penalty=0.01) for stage in (1, 2, 3)]
    expected = by_autograd(searches[0], folder)
    assert abs(expected[0] - 0.5) > 0.02
    for found in on_ranks(world, weights_on_ranks, searches):
        assert found == pytest.approx(expected, abs=2e-4)


def test_the_search_starts_at_the_average() -> None:
    position = Position(SelfPositioning(), 4)
    assert position.weights == pytest.approx([0.25] * 4)
    position.move([1.0, 0.0, 0.0, 0.0])
    assert position.weights[0] < position.weights[1] == pytest.approx(position.weights[3])


def test_the_penalty_keeps_the_sum_near_one() -> None:
    free, kept = (Position(SelfPositioning(penalty=penalty), 2) for penalty in (0.0, 2.0))
    for _ in range(50):
        free.move([-1.0, -1.0])
        kept.move([-1.0, -1.0])
    assert sum(free.weights) > 1.5
    assert sum(kept.weights) == pytest.approx(1.0, abs=0.1)
