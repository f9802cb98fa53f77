"""Losses that follow a teacher, against sentence-transformers and their formulas."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_pipeline.errors import ConfigError
from tests.unit.objectives.test_info_nce import Stub, gathered_pairs, ragged_pairs, vectors
from trainer.objectives.combined import Combined
from trainer.objectives.embedding_distillation import EmbeddingDistillation
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.nested import Nested, NestedConfig
from trainer.objectives.objective import Objective, PairVectors
from trainer.objectives.own_documents import by_pair
from trainer.objectives.score_distillation import Dse, MarginMse, ScoreKl

PAIRS, NEGATIVES = 6, 3
DOCUMENTS = PAIRS * (1 + NEGATIVES)


def rows(owners: torch.Tensor, scores: torch.Tensor, **more: Any) -> Any:
    weights = torch.ones(int(owners.max()) + 1)
    return SimpleNamespace(weights=weights, owners=owners, scores=scores, **more)


def even() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PairVectors]:
    """Anchors, documents, a teacher's scores [PAIRS, 1 + NEGATIVES], and the pairs, each with as many negatives."""
    queries, documents = vectors(PAIRS, 0).requires_grad_(), vectors(DOCUMENTS, 1).requires_grad_()
    scores = torch.randn(PAIRS, 1 + NEGATIVES, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    reps = gathered_pairs(queries, documents, list(range(PAIRS)), list(range(100, 100 + DOCUMENTS)))
    return queries, documents, scores, reps


@pytest.mark.parametrize("loss", ["margin_mse", "score_kl"])
def test_losses_and_gradients_are_those_of_sentence_transformers(loss: str) -> None:
    from sentence_transformers.sentence_transformer import losses

    queries, documents, scores, reps = even()
    stub: Any = Stub()
    if loss == "margin_mse":
        # Theirs has no scale: vectors of length sqrt(10) have ten times the products.
        reference, ours, length, factor = losses.MarginMSELoss(stub), MarginMse(), math.sqrt(10), 1.0
    else:
        reference: Any = losses.DistillKLDivLoss(stub, student_temperature=0.3, teacher_temperature=2.0)
        ours, length, factor = ScoreKl(temperature=0.3, teacher_temperature=2.0), 1.0, 0.3**2
    columns = [queries, *documents.split(PAIRS)]
    theirs = reference([{"v": column * length} for column in columns], scores)
    batch = rows(torch.arange(DOCUMENTS) % PAIRS, scores.T.flatten())
    value = ours(reps, batch).mean() * factor
    assert abs(value.detach() - theirs.detach()) < 1e-9
    leaves = [queries, documents]
    for own, other in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert (own - other).abs().max() < 1e-9


def test_dse_is_the_mean_squared_distance_to_the_scores() -> None:
    counts = [0, 2, 1, 0, 3, 0]
    documents = vectors(PAIRS + sum(counts), 1)
    reps = ragged_pairs(vectors(PAIRS, 0), documents, counts)
    scores = torch.randn(len(documents), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores[[2, PAIRS]] = float("nan")  # a positive and a negative without a score
    found = Dse(scale=4.0)(reps, rows(reps.documents.owners, scores))
    for pair in range(PAIRS):
        own = [place for place in range(len(documents)) if int(reps.documents.owners[place]) == pair]
        errors = [
            (4 * float(reps.anchors.own[pair] @ documents[place]) - float(scores[place])) ** 2
            for place in own
            if not scores[place].isnan()
        ]
        assert float(found[pair]) == pytest.approx(sum(errors) / max(1, len(errors)), abs=1e-9)


@pytest.mark.parametrize("objective", [Dse(), MarginMse(), ScoreKl()])
def test_documents_without_a_score_change_nothing(objective: Objective) -> None:
    """Neither the loss nor its gradient, and a pair without any score has a loss of 0."""
    queries, documents, scores, reps = even()
    owners, flat = torch.arange(DOCUMENTS) % PAIRS, scores.T.flatten().clone()
    flat[owners == 4] = float("nan")
    flat[PAIRS * 3 :] = float("nan")  # the last negative of each pair
    loss = objective(reps, rows(owners, flat))
    assert loss[4].item() == 0
    few = gathered_pairs(queries, documents[: 3 * PAIRS], list(range(PAIRS)), list(range(3 * PAIRS)))
    without_last = objective(few, rows(owners[: 3 * PAIRS], flat[: 3 * PAIRS]))
    assert torch.allclose(loss, without_last, atol=1e-12)
    gradient = torch.autograd.grad(loss.sum(), documents)[0]
    assert gradient.isfinite().all()
    assert float(gradient[flat.isnan()].abs().max()) == 0


@pytest.mark.parametrize("objective", [MarginMse(scale=7.0), ScoreKl(), Dse(scale=7.0)])
def test_a_student_that_scores_as_the_teacher_has_no_loss(objective: Any) -> None:
    queries, documents, _, reps = even()
    owners = torch.arange(DOCUMENTS) % PAIRS
    cosines = (queries[owners] * documents).sum(dim=1).detach()
    scores = cosines / objective.temperature if isinstance(objective, ScoreKl) else 7 * cosines
    assert objective(reps, rows(owners, scores)).abs().max().item() < 1e-12


def test_embedding_distillation_is_one_minus_the_cosine() -> None:
    counts = [1, 0, 2, 0, 0, 1]
    documents = vectors(PAIRS + sum(counts), 1)
    reps = ragged_pairs(vectors(PAIRS, 0), documents, counts)
    teacher = 3 * vectors(PAIRS + len(documents), 4)
    found = EmbeddingDistillation()(reps, rows(reps.documents.owners, torch.empty(0), teacher=teacher))
    distances = 1 - torch.nn.functional.cosine_similarity(torch.cat([reps.anchors.own, documents]), teacher)
    for pair in range(PAIRS):
        own = distances[PAIRS:][reps.documents.owners == pair]
        assert float(found[pair]) == pytest.approx(float(distances[pair] + own.mean()), abs=1e-12)


def test_each_width_follows_the_leading_values_of_the_teacher() -> None:
    reps = ragged_pairs(vectors(PAIRS, 0), vectors(PAIRS, 1), [0] * PAIRS)
    teacher = torch.cat([reps.anchors.own, reps.documents.own])
    objective = Nested(inner=EmbeddingDistillation(), config=NestedConfig(widths=(4, 2)))
    assert float(objective(reps, rows(torch.arange(PAIRS), torch.empty(0), teacher=teacher)).abs().max()) < 1e-12
    with pytest.raises(ConfigError, match="the teacher's vectors have 4 dimensions, the student's 8"):
        EmbeddingDistillation()(reps, rows(torch.arange(PAIRS), torch.empty(0), teacher=teacher[:, :4]))


def test_a_sum_of_losses_needs_what_each_needs() -> None:
    _, _, scores, reps = even()
    batch = rows(torch.arange(DOCUMENTS) % PAIRS, scores.T.flatten())
    both = Combined(parts=((InfoNce(), 1.0), (ScoreKl(), 0.25)))
    assert torch.allclose(both(reps, batch), InfoNce()(reps, batch) + ScoreKl()(reps, batch) / 4)
    assert (both.needs.scores, both.needs.all_anchors, both.needs.teacher) == (True, True, False)


def test_settings_that_make_no_loss_are_refused() -> None:
    for make in (lambda: Dse(scale=0.0), lambda: ScoreKl(teacher_temperature=-1.0), lambda: MarginMse(weight=0.0)):
        with pytest.raises(ConfigError, match="must be above 0"):
            make()


def test_documents_stand_in_a_row_of_their_pair() -> None:
    places, is_there = by_pair(torch.tensor([0, 1, 2, 2, 0, 2]), 4)
    assert [row[there].tolist() for row, there in zip(places, is_there, strict=True)] == [[0, 4], [1], [2, 3, 5], []]
