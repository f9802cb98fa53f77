"""`verify` finds every fault, and none in a correct model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import tiny_decoder, tiny_model
from tests.unit.models.test_loading import gemma3
from tests.unit.transfer.test_graft import far_below_zero, seq2seq, untied
from trainer.models import multimodal
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS, fvt
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Placement, Problem, assemble
from trainer.transfer.verify import Side, verify


def model_from_seed(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return gemma3(len(tokenizer))


MODELS = {
    "encoder": tiny_model,
    "encoder, untied": lambda tokenizer: untied(tiny_model(tokenizer)),
    "decoder": lambda tokenizer: tiny_decoder(tokenizer, "llama", tied=False),
    "decoder near -40": far_below_zero,
    "text tower": lambda tokenizer: multimodal.language_model(model_from_seed(tokenizer)).eval(),
    "encoder-decoder": lambda tokenizer: seq2seq(tokenizer, "t5", True),
}


def sides(problem: Problem, kind: str, method: str = "fvt") -> tuple[Side, Side, TransferPlan]:
    plan = assemble(problem, METHODS[method].place(problem, METHODS[method].config()), method)
    grafted = MODELS[kind](problem.source)
    graft(grafted, plan, problem.target)
    return (
        Side(model=MODELS[kind](problem.source), tokenizer=problem.source),
        Side(model=grafted, tokenizer=problem.target),
        plan,
    )


def failed_checks(source: Side, grafted: Side, plan: TransferPlan) -> dict[str, tuple[str, ...]]:
    return {finding.check: finding.failures for finding in verify(source, grafted, plan) if not finding.is_ok}


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("method", ["fvt", "mean", "random", "resize"])
def test_a_transferred_model_passes(problem, kind: str, method: str) -> None:
    assert failed_checks(*sides(problem, kind, method)) == {}


def test_a_copied_row_that_changed_is_named(problem) -> None:
    source, grafted, plan = sides(problem, "encoder, untied")
    row = int(plan.copies()[40])
    with torch.no_grad():
        grafted.model.get_input_embeddings().weight[row, 0] += 1e-6
    results = failed_checks(source, grafted, plan)
    assert list(results) == ["copied rows of the input embeddings"]  # a millionth: not to the last bit, but as planned
    assert f"row {row} " in results["copied rows of the input embeddings"][0]
    with torch.no_grad():
        grafted.model.get_output_embeddings().bias[row] += 0.5
        grafted.model.get_output_embeddings().weight[row] *= 2
    assert {"copied rows of the output embeddings", "copied rows of the bias of the head", "logits"} <= set(
        failed_checks(source, grafted, plan)
    )


def test_infinite_zero_and_duplicate_rows_are_named(problem) -> None:
    source, grafted, plan = sides(problem, "decoder")
    mixed = [int(row) for row in fvt.place(problem, fvt.FvtConfig()).ids]
    weight = grafted.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[mixed[0]] = float("nan")
        weight[mixed[1]] = 0.0
        weight[mixed[2]] = weight[int(plan.copies()[50])]
        weight[mixed[3]] += 0.01
    results = failed_checks(source, grafted, plan)
    assert f"row {mixed[0]} " in results["finite input embeddings"][0]
    assert f"row {mixed[1]} " in results["zero rows"][0]
    assert any(f"row {mixed[3]} " in line for line in results["planned input embeddings"])
    assert any(f"row {mixed[2]} " in line for line in results["rows that are equal"])


def test_one_mixture_written_in_two_orders_is_one_recipe(problem) -> None:
    first, second = (int(row) for row in problem.new[:2])
    both = np.flatnonzero(problem.shared >= 0)[-2:]
    left, right = problem.shared[both]
    rows = Placement(
        ids=np.array([first, second]),
        counts=np.array([2, 2]),
        indices=np.array([left, right, right, left]),
        weights=np.full(4, 0.5, np.float32),
        provenance=Provenance.COMPOSITION,
    )
    plan, grafted = assemble(problem, rows, "fvt"), MODELS["encoder"](problem.source)
    graft(grafted, plan, problem.target)
    matrix = grafted.get_input_embeddings().weight
    assert torch.equal(matrix[first], matrix[second])
    source = Side(model=MODELS["encoder"](problem.source), tokenizer=problem.source)
    assert failed_checks(source, Side(model=grafted, tokenizer=problem.target), plan) == {}


def test_ids_tokenizers_and_bodies_of_other_models_are_detected(problem, english) -> None:
    source, grafted, plan = sides(problem, "encoder")
    grafted.model.config.pad_token_id = len(plan) + 5
    assert "roles" in failed_checks(source, grafted, plan)
    assert "plan" in failed_checks(source, grafted, replace(plan, source_tokenizer="another"))
    source, grafted, plan = sides(problem, "encoder")
    with torch.no_grad():
        grafted.model.base_model.encoder.layer[0].attention.self.value.weight *= 1.5
    assert list(failed_checks(source, grafted, plan)) == ["logits"]


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_rows_without_a_token_that_could_be_predicted_are_detected(problem, kind: str) -> None:
    """The filling had zero rows and a bias of 0."""
    source, grafted, plan = sides(problem, kind)
    inputs, head = grafted.model.get_input_embeddings(), grafted.model.get_output_embeddings()
    with torch.no_grad():
        for part in {inputs.weight, head.weight, getattr(head, "bias", None)} - {None}:
            part[len(plan) :] = 0
    results = failed_checks(source, grafted, plan)
    assert "filling of the input embeddings" in results
    assert f"row {len(plan)} '(filling)'" in results["filling of the input embeddings"][0]
    assert ("filling of the output embeddings" in results) == (head.weight is not inputs.weight)
    assert ("filling of the bias of the head" in results) == (getattr(head, "bias", None) is not None)


def test_a_filling_row_that_is_the_most_likely_is_detected(problem) -> None:
    source, grafted, plan = sides(problem, "decoder near -40")
    with torch.no_grad():
        grafted.model.get_input_embeddings().weight[len(plan) :] = 0
    assert set(failed_checks(source, grafted, plan)) == {
        "filling of the input embeddings",
        "zero rows",
        "logits without a token",
    }


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("method", ["fvt", "random"])
def test_a_model_in_bf16_passes_but_a_change_of_one_bf16_step_does_not(problem, kind: str, method: str) -> None:
    """The plan is applied in the model's own dtype; copied rows stay equal bit for bit."""
    plan = assemble(problem, METHODS[method].place(problem, METHODS[method].config()), method)
    source, grafted = (MODELS[kind](problem.source).bfloat16() for _ in range(2))
    graft(grafted, plan, problem.target)
    assert grafted.dtype == torch.bfloat16
    both = Side(model=source, tokenizer=problem.source), Side(model=grafted, tokenizer=problem.target)
    assert failed_checks(*both, plan) == {}
    row = int(plan.copies()[40])
    with torch.no_grad():
        weight = grafted.get_input_embeddings().weight
        weight[row, 0] = torch.nextafter(weight[row, 0], torch.tensor(100.0, dtype=torch.bfloat16))
    assert "copied rows of the input embeddings" in failed_checks(*both, plan)
