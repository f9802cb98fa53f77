"""Matryoshka and 2D Matryoshka against sentence-transformers and their formulas."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from data_pipeline.errors import ConfigError
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.shards import tokenize_pairs
from data_pipeline.pairs.text_pairs import Pairs
from tests.conftest import FAMILIES, tiny_model
from tests.unit.objectives.test_info_nce import PAIRS, Stub, gathered_pairs, vectors
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.nested import Nested, NestedConfig
from trainer.objectives.objective import PairVectors
from trainer.tasks.contrastive import ContrastiveTask

ONE_WAY = InfoNce(temperature=1 / 20, directions=("query_to_doc",))


def losses(objective: Nested, reps: PairVectors) -> torch.Tensor:
    return objective(reps, SimpleNamespace(weights=torch.ones(PAIRS)))  # type: ignore[arg-type]


def stacked(exits: list[tuple[torch.Tensor, torch.Tensor]]) -> PairVectors:
    """Pairs with the vectors of several exits, the last layer's last."""
    queries, documents = (torch.stack(side, dim=1) for side in zip(*exits, strict=True))
    return gathered_pairs(queries, documents, list(range(PAIRS)), list(range(100, 100 + len(documents))))


def test_the_loss_is_that_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    queries, documents = vectors(PAIRS, 0), vectors(PAIRS, 1)
    stub: Any = Stub()
    stub.get_embedding_dimension = lambda: 8
    inner = MultipleNegativesRankingLoss(stub, scale=20.0)
    theirs = MatryoshkaLoss(stub, inner, matryoshka_dims=[8, 4, 2], matryoshka_weights=[1, 0.5, 0.25])(
        [{"v": queries}, {"v": documents}], None
    )  # type: ignore[arg-type,list-item]
    config = NestedConfig(widths=(4, 2), width_weights=(0.5, 0.25))
    reps = gathered_pairs(queries, documents, list(range(PAIRS)), list(range(100, 100 + PAIRS)))
    assert abs(losses(Nested(inner=ONE_WAY, config=config), reps).mean() * 1.75 - theirs) < 1e-9


def test_an_exit_adds_its_loss_and_its_divergence() -> None:
    """By the formula of 2DMSE as sentence-transformers' AdaptiveLayerLoss computes it, with the same texts for each pair."""
    inner, last = (vectors(PAIRS, 0), vectors(PAIRS, 1)), (vectors(PAIRS, 2), vectors(PAIRS, 3))
    config = NestedConfig(exits=(3,), exit_weight=0.7, alignment=0.4, alignment_temperature=0.3)
    found = losses(Nested(inner=ONE_WAY, config=config), stacked([inner, last])).mean()
    plain = [losses(Nested(inner=ONE_WAY), gathered_pairs(*side, list(range(PAIRS)), list(range(100, 100 + PAIRS)))).mean()  # type: ignore[arg-type]
             for side in (last, inner)]  # fmt: skip
    divergence = torch.nn.functional.kl_div(
        (torch.cat(inner) / 0.3).log_softmax(dim=1), (torch.cat(last) / 0.3).softmax(dim=1), reduction="batchmean"
    )
    assert abs(found - (plain[0] + 0.7 * plain[1] + 0.4 * 0.3 * divergence)) < 1e-9


def test_the_last_layer_does_not_follow_the_exit() -> None:
    inner, last = (
        (vectors(PAIRS, 0), vectors(PAIRS, 1)),
        (vectors(PAIRS, 2).requires_grad_(), vectors(PAIRS, 3).requires_grad_()),
    )
    gradients = []
    for alignment in (0.0, 1.0):
        config = NestedConfig(exits=(3,), alignment=alignment)
        gradients.append(torch.autograd.grad(losses(Nested(inner=ONE_WAY, config=config), stacked([inner, last])).sum(), last))
    assert all(torch.equal(without, with_it) for without, with_it in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (8, 8)}, "widths must be distinct"),
        ({"exits": (0,)}, "exits must be distinct and at least 1"),
        ({"widths": (4,), "width_weights": (1.0, 2.0)}, "1 widths and 2 weights"),
        ({"exits": (1,), "alignment": -1.0}, "at least 0"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NestedConfig(**settings)


def test_a_width_is_below_the_full_one() -> None:
    reps = gathered_pairs(vectors(PAIRS, 0), vectors(PAIRS, 1), list(range(PAIRS)), list(range(100, 100 + PAIRS)))
    with pytest.raises(ConfigError, match="the model's vectors have 8 values, so that a width of 8 is not"):
        losses(Nested(inner=ONE_WAY, config=NestedConfig(widths=(8,))), reps)


def test_a_model_of_two_dimensions_learns_as_with_sentence_transformers(
    tmp_path: Path, english: list[str], monkeypatch
) -> None:
    """Loss and gradients of Matryoshka2dLoss on a whole model; it sums over widths, where ours is their mean."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import Matryoshka2dLoss, MultipleNegativesRankingLoss

    spec = EmbedderSpec(max_length=32)
    Embedder(tiny_model(tokenizer := FAMILIES["wordpiece"](english)).bert, tokenizer, spec).save(str(tmp_path))
    pairs = Pairs(ids=list("abcd"), anchors=english[:4], positives=english[10:14], negatives=[[]] * 4)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    loss = Matryoshka2dLoss(theirs, MultipleNegativesRankingLoss(theirs, scale=20.0), [32, 8], n_dims_per_step=-1)
    monkeypatch.setattr("random.sample", lambda layers, count: [1])
    features = [theirs.preprocess(texts) for texts in (pairs.anchors, pairs.positives)]
    expected = loss(features, None)  # type: ignore[arg-type]
    expected.backward()

    nested = Nested(inner=ONE_WAY, config=NestedConfig(widths=(8,), exits=(1,), alignment=0.5))
    module = ContrastiveTask(model_uri=str(tmp_path), spec=spec, objective=nested).module()
    ones = {"stream": pa.array([0] * 4), "weight": pa.array([1.0] * 4)}
    table = tokenize_pairs(pairs, tokenizer, 32)
    for name, column in ones.items():
        table = table.append_column(name, column)
    found = 2 * module.eval()(PairBatch(table, int(tokenizer.pad_token_id), 4096)).mean()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    wanted = dict(theirs[0].auto_model.named_parameters())
    for name, weight in module.model.named_parameters():
        if weight.grad is not None:
            expected_gradient = wanted[name].grad
            assert (weight.grad - expected_gradient).abs().max() <= 2e-5 * expected_gradient.abs().max() + 1e-5, name
    assert sum(weight.grad is not None for weight in module.parameters()) > 20
