"""Factorised embeddings: against numpy's and scikit-learn's decompositions, and as folders for other libraries."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from sklearn.decomposition import TruncatedSVD
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.tokenizers import train
from tests.conftest import FAMILIES, tiny_decoder, tiny_model
from tests.unit.transfer.test_graft import untied
from trainer.models import factored_embeddings, loading
from trainer.transfer import apply, factorise
from trainer.transfer.graft import graft
from trainer.transfer.methods import aligned
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Problem, assemble
from trainer.word_vectors.texts import Texts

RANK = 12
IDS = torch.arange(5, 65)
TRUSTED = {"trust_remote_code": True, "output_loading_info": True}


def matrix(rows: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows with a common direction and a falling spectrum, as embeddings have."""
    random = np.random.default_rng(3)
    mixed = random.standard_normal((rows, width)) * np.geomspace(2, 0.05, width) @ random.standard_normal((width, width))
    return torch.from_numpy(mixed / width**0.5 + 0.3).to(dtype)


def truncated_svd(rows: torch.Tensor, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """numpy's nearest product of a rank, and all singular values."""
    left, values, right = np.linalg.svd(rows.double().numpy(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank], values


@pytest.mark.parametrize("split", ["balanced", "paper"])
@pytest.mark.parametrize(("rows", "width", "rank"), [(900, 64, 10), (900, 64, 64), (40, 64, 17), (40, 64, 40), (50, 8, 1)])
def test_the_product_equals_numpys_truncated_decomposition(rows: int, width: int, rank: int, split: Any, monkeypatch) -> None:
    monkeypatch.setattr(factorise, "BLOCK_ROWS", 128)
    given = matrix(rows, width)
    coordinates, primitives = factorise.factorise(given, rank, split)
    assert coordinates.shape == (rows, rank)
    assert primitives.shape == (rank, width)
    assert coordinates.dtype == primitives.dtype == torch.float32
    assert np.abs((coordinates @ primitives).numpy() - truncated_svd(given, rank)[0]).max() < 1e-5


def test_the_product_equals_scikit_learns_truncated_decomposition() -> None:
    given = matrix(500, 48, torch.float64)
    judge = TruncatedSVD(9, algorithm="arpack", random_state=0)
    expected = judge.fit_transform(given.numpy()) @ judge.components_
    coordinates, primitives = factorise.factorise(given, 9)
    assert np.abs((coordinates @ primitives).numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("rank", [1, 20, 63])
def test_the_squared_error_is_the_energy_of_the_dropped_singular_values(rank: int) -> None:
    given = matrix(700, 64, torch.float64)
    coordinates, primitives = factorise.factorise(given, rank)
    dropped = (truncated_svd(given, rank)[1][rank:] ** 2).sum()
    assert float((given - coordinates @ primitives).square().sum()) == pytest.approx(dropped, rel=1e-9)


def test_the_splits_differ_only_in_their_factors() -> None:
    """The paper's F has orthonormal columns; the balanced factors have the same lengths on both sides."""
    given = matrix(600, 32, torch.float64)
    (paper_f, paper_p), (f, p) = factorise.factorise(given, 8, "paper"), factorise.factorise(given, 8)
    assert torch.allclose(paper_f @ paper_p, f @ p, atol=1e-12)
    assert torch.allclose(paper_f.T @ paper_f, torch.eye(8, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(f.T @ f, p @ p.T, atol=1e-9)
    assert (p.gather(1, p.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("split", ["balanced", "paper"])
def test_singular_values_of_zero_are_handled(split: Any) -> None:
    low = matrix(100, 3, torch.float64) @ matrix(3, 16, torch.float64)
    for given in (low, torch.zeros(20, 16)):
        coordinates, primitives = factorise.factorise(given, 16, split)
        assert torch.isfinite(coordinates).all()
        assert torch.allclose(coordinates @ primitives, given, atol=1e-10)


@pytest.mark.parametrize("rank", [-1, 0, 17, 200])
def test_a_rank_that_the_matrix_does_not_have_is_rejected(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"no factors of rank {rank}.*Choose 1 to 16"):
        factorise.factorise(matrix(100, 16), rank)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 0.999, 1.0])
def test_the_rank_by_energy_is_the_smallest_that_keeps_it(share: float) -> None:
    given = matrix(300, 24)
    energy = truncated_svd(given, 1)[1] ** 2
    rank = factorise.rank_for_energy(given, share)
    assert energy[:rank].sum() >= (share - 1e-9) * energy.sum()
    assert energy[: rank - 1].sum() < share * energy.sum()


def test_the_rank_by_parameters_is_the_largest_within_the_budget() -> None:
    assert factorise.rank_for_parameters(40_191_300, 401_145, 768) == 100  # the paper's Glot500 figure
    assert factorise.rank_for_parameters(40_191_299, 401_145, 768) == 99
    assert factorise.rank_for_parameters(10**12, 401_145, 768) == 768


def test_impossible_shares_and_budgets_are_rejected() -> None:
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match=f"{share} of the energy"):
            factorise.rank_for_energy(matrix(30, 4), share)
    with pytest.raises(ConfigError, match="Allow at least 1,016"):
        factorise.rank_for_parameters(1015, 1000, 16)


MODELS: dict[str, tuple[str, Any, Callable[..., Any]]] = {
    "bert": ("wordpiece", AutoModelForMaskedLM, tiny_model),
    "roberta": ("byte_level", AutoModelForMaskedLM, tiny_model),
    "gpt2": ("byte_level", AutoModelForCausalLM, tiny_decoder),
    "llama": ("byte_level", AutoModelForCausalLM, lambda tokenizer: tiny_decoder(tokenizer, "llama")),
}
Case = tuple[Any, TransferPlan, Problem, Any, bool]
"""A source model, a plan for it, the problem of the plan, the auto class, and whether the matrices are tied."""


@pytest.fixture(autouse=True, scope="module")
def _own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def planned(english, greek, pairs) -> dict[str, tuple[Problem, TransferPlan]]:
    """A plan with copies, mixtures and random rows, for each tokenizer family."""
    texts = Texts(corpus=lambda: iter(greek), anchors=english, positives=[row["positive"] for row in pairs])
    cases = {}
    for family in ("wordpiece", "byte_level"):
        source = FAMILIES[family](english)
        target = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1500))
        problem = Problem(source, target, texts, seed=3)
        cases[family] = problem, assemble(problem, aligned.place(problem, aligned.AlignedConfig()), "aligned")
    return cases


@pytest.fixture(params=[(kind, tied) for kind in MODELS for tied in (True, False)], ids=str)
def case(request: pytest.FixtureRequest, planned) -> Case:
    kind, tied = request.param
    family, auto, make = MODELS[kind]
    problem, plan = planned[family]
    model = make(problem.source)
    return model if tied else untied(model), plan, problem, auto, tied


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids[None]).logits


def graft_case(case: Case, rank: int = RANK) -> Any:
    source, plan, problem, _, _ = case
    model = factorise.with_factors(copy.deepcopy(source), rank)
    graft(model, plan, problem.target)
    return model


def test_the_folder_with_factors_has_the_same_output_as_the_plain_folder(case: Case, tmp_path: Path) -> None:
    """Both load without missing or unexpected keys; the plain one needs none of our code."""
    _, _, problem, auto, tied = case
    model = graft_case(case)
    model.save_pretrained(tmp_path / "factors")
    problem.target.save_pretrained(tmp_path / "factors")
    factorise.without_factors(model).save_pretrained(tmp_path / "plain")
    factors, report = auto.from_pretrained(tmp_path / "factors", **TRUSTED)
    plain, plain_report = auto.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(report.values())
    assert not any(plain_report.values())
    assert type(plain).__module__.startswith("transformers.models")
    assert torch.equal(logits(factors), logits(model))
    assert (logits(factors) - logits(plain)).abs().max() < 1e-4
    assert factors.config.vocab_size % 128 == plain.config.vocab_size % 128 == 0
    assert (factors.get_output_embeddings().projection is factors.get_input_embeddings().projection) == tied
    assert not {"embedding_rank", "auto_map"} & json.loads((tmp_path / "plain" / "config.json").read_text()).keys()
    assert json.loads((tmp_path / "factors" / "config.json").read_text())["embedding_rank"] == RANK
    assert AutoTokenizer.from_pretrained(tmp_path / "factors")("test").input_ids == problem.target("test").input_ids


def test_full_rank_equals_the_plain_graft(case: Case) -> None:
    """Except random rows: they are drawn in coordinates, so they differ."""
    source, plan, problem, _, _ = case
    placed_ids = torch.from_numpy(np.flatnonzero(plan.provenance != Provenance.RANDOM))
    plain = copy.deepcopy(source)
    graft(plain, plan, problem.target)
    expected, got = logits(plain, placed_ids[5:65]), logits(graft_case(case, rank=32), placed_ids[5:65])
    assert (expected - got)[..., placed_ids].abs().max() < 1e-4


def test_copies_are_the_old_coordinates_bit_for_bit(case: Case) -> None:
    source, plan, _, _, _ = case
    old = factorise.with_factors(source, RANK)
    new = graft_case(case)
    tied = new.get_input_embeddings().weight is new.get_output_embeddings().weight
    for side, matrix in (("get_input_embeddings", "inputs"), ("get_output_embeddings", "inputs" if tied else "outputs")):
        before, after = getattr(old, side)(), getattr(new, side)()
        copies = plan.copies()
        assert torch.equal(after.weight[copies], before.weight[plan.indices[plan.indptr[copies]]])
        assert torch.equal(after.weight[: len(plan)], apply.embeddings(plan, before.weight.detach(), matrix))
        assert torch.equal(after.projection, before.projection)
        assert torch.allclose(after.weight[len(plan) :], after.weight[: len(plan)].mean(dim=0), atol=1e-6)


def test_the_folder_stores_each_weight_once(case: Case, tmp_path: Path) -> None:
    """V r + r D parameters instead of V D for each matrix; tied weights are stored once."""
    tied = case[-1]
    model = graft_case(case)
    model.save_pretrained(tmp_path)
    rows, width = len(model.get_input_embeddings().weight), 32
    saved = (1 if tied else 2) * (rows * width - rows * RANK - RANK * width)
    assert loading.parameter_count(factorise.without_factors(model)) - loading.parameter_count(model) == saved
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
    assert sum(name.endswith(".projection") for name in names) == (1 if tied else 2)


def test_a_step_of_training_moves_both_factors_and_leaves_them_tied(case: Case) -> None:
    tied = case[-1]
    model = graft_case(case).train()
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    before = {part: (part.weight.clone(), part.projection.clone()) for part in (inputs, head)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = model(input_ids=IDS[None], labels=IDS[None]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    for part, (coordinates, primitives) in before.items():
        assert not torch.equal(part.weight, coordinates)
        assert not torch.equal(part.projection, primitives)
    assert (inputs.weight is head.weight) == (inputs.projection is head.projection) == tied


def test_a_loaded_model_can_be_saved_and_loaded_again(case: Case, tmp_path: Path) -> None:
    """With its code, byte for byte, and by our own class without trusting the code of a folder."""
    auto = case[3]
    model = graft_case(case)
    model.save_pretrained(tmp_path / "one")
    auto.from_pretrained(tmp_path / "one", trust_remote_code=True).save_pretrained(tmp_path / "two")
    kind = getattr(factored_embeddings, json.loads((tmp_path / "two" / "config.json").read_text())["architectures"][0])
    kind.from_pretrained(tmp_path / "two").save_pretrained(tmp_path / "three")
    again, report = auto.from_pretrained(tmp_path / "three", **TRUSTED)
    assert not any(report.values())
    assert torch.equal(logits(again), logits(model))
    assert (tmp_path / "three" / "factored_embeddings.py").read_bytes() == Path(factored_embeddings.__file__).read_bytes()
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "three" / "config.json").read_text()


def test_the_body_alone_is_loaded_with_the_same_vectors(case: Case, tmp_path: Path) -> None:
    """A body that is saved alone gets a new head."""
    model = graft_case(case)
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert loading.kind_of(str(tmp_path)) == ("masked" if case[3] is AutoModelForMaskedLM else "causal")
    with torch.no_grad():
        assert torch.equal(body(input_ids=IDS[None])[0], model.base_model(input_ids=IDS[None])[0])
    body.save_pretrained(tmp_path / "body")
    assert torch.isfinite(logits(case[3].from_pretrained(tmp_path / "body", trust_remote_code=True))).all()


def test_without_its_code_the_folder_is_rejected(case: Case, tmp_path: Path) -> None:
    """It is not loaded with random embeddings: the shapes do not fit."""
    graft_case(case).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        case[3].from_pretrained(tmp_path)


def test_resizing_keeps_the_factors(case: Case) -> None:
    model = graft_case(case)
    before = logits(model)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 64, mean_resizing=False)
    assert logits(model).shape[-1] == rows + 64
    assert torch.equal(logits(model)[..., :rows], before)
    model.resize_token_embeddings(rows)
    assert torch.equal(logits(model), before)


def test_other_tasks_load_the_same_folder(planned, tmp_path: Path) -> None:
    problem, _ = planned["wordpiece"]
    model = factorise.with_factors(tiny_model(problem.source), RANK)
    model.save_pretrained(tmp_path / "lm")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", trust_remote_code=True, num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    again, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier", **TRUSTED)
    assert not any(report.values())
    assert torch.equal(logits(again), logits(classifier))


def test_a_fresh_model_has_rows_of_the_usual_size(planned) -> None:
    """Without weights, the products have the variance of plain rows in a new model."""
    settings = tiny_model(planned["wordpiece"][0].source).config
    settings.embedding_rank = RANK
    inputs = factored_embeddings.factored_class(transformers.BertForMaskedLM)(settings).get_input_embeddings()
    assert float((inputs.weight @ inputs.projection).detach().std()) == pytest.approx(settings.initializer_range, rel=0.2)


def test_embeddings_that_are_more_than_a_matrix_are_rejected(planned) -> None:
    source = planned["wordpiece"][0].source
    scaled = tiny_model(source)

    class Scaled(torch.nn.Embedding):
        pass

    scaled.set_input_embeddings(Scaled(len(source), 32))
    shared = T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for model in (scaled, shared):
        with pytest.raises(ModelError, match=f"{type(model).__name__} cannot be factorised"):
            factorise.with_factors(model, 4)
