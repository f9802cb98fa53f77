"""Verifies that a transferred model matches its plan: the linear algebra, the tokens, and the whole model."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.artifacts.check_result import CheckResult
from data_pipeline.errors import ModelError
from data_pipeline.tokenizers import verify as tokenizers
from data_pipeline.tokenizers.canonical import canonical_tokens, role_ids, vocabulary_hash
from trainer.transfer import apply
from trainer.transfer.plan import DRAWS, Provenance, TransferPlan

_TEXTS, _LENGTH = 4, 32
"""Number of random texts of copied tokens that both models read, and their length in tokens."""
_LOGITS = 1e-4
"""Tolerance of a logit: matrices of other sizes add the same numbers in another order."""
_ROW = 1e-5
"""Tolerance of an entry against the plan's: another machine may sum differently. A dtype coarser than fp32 adds two of its
own steps."""
_MAX_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def verify(source: Side, grafted: Side, plan: TransferPlan, product: bool = False, given: bool = False) -> list[CheckResult]:
    """Runs all checks, in the order in which a reader should fix the failures.

    Args:
        product: the embeddings are factors multiplied out: copies are equal up to rounding, and random rows were drawn in
            the factors.
        given: the user gave the new tokenizer; it was not made from the source tokenizer.

    Raises:
        ModelError: the two models are of different architectures.
    """
    families = [side.model.config.model_type for side in (source, grafted)]
    if families[0] != families[1]:
        raise ModelError(
            f"the source is a {families[0]}, the grafted model a {families[1]}.", "source_model", "Name its source."
        )
    return [
        _plan_matches(source, grafted, plan),
        _roles(grafted),
        *tokenizers.verify(grafted.tokenizer, source.tokenizer, given=given),
        *_matrices(source, grafted, plan, product),
        *_logits(source, grafted, plan),
    ]


def _plan_matches(source: Side, grafted: Side, plan: TransferPlan) -> CheckResult:
    """Checks that the plan, the tokenizers and the matrix sizes belong together."""
    failures = []
    if plan.source_tokenizer != vocabulary_hash(source.tokenizer):
        failures.append("the plan is for another source tokenizer")
    if plan.target_tokenizer != vocabulary_hash(grafted.tokenizer):
        failures.append("the plan is for another new tokenizer")
    matrix_rows = len(_inputs(grafted.model))
    if not len(plan) <= matrix_rows or matrix_rows != grafted.model.config.get_text_config().vocab_size:
        failures.append(
            f"{len(plan):,} planned rows, a matrix of {matrix_rows:,}, vocab_size={grafted.model.config.vocab_size:,}"
        )
    return CheckResult(
        check="plan", detail=f"{len(plan):,} planned rows, {matrix_rows:,} in the model", failures=tuple(failures)
    )


def _roles(grafted: Side) -> CheckResult:
    """Every special id in the configs is in the vocabulary and is the tokenizer's id for that role."""
    roles, failures = role_ids(grafted.tokenizer), []
    size, checked = len(canonical_tokens(grafted.tokenizer)), 0
    for config in (grafted.model.config, getattr(grafted.model, "generation_config", None)):
        for name, value in vars(config).items() if config is not None else ():
            if not name.endswith("_token_id") or value is None:
                continue
            checked += 1
            role = name.removesuffix("_token_id")
            for number in value if isinstance(value, list) else [value]:
                if not 0 <= number < size:
                    failures.append(f"{name}={number} is not an id of the tokenizer")
                elif role in roles and not isinstance(value, list) and number != roles[role]:
                    failures.append(f"{name}={number}, but the tokenizer's is {roles[role]}")
    return CheckResult(check="roles", detail=f"{checked} ids in the configs", failures=tuple(failures))


def _matrices(source: Side, grafted: Side, plan: TransferPlan, product: bool) -> Iterable[CheckResult]:
    """Copies are equal bit for bit, all rows are finite, and zero or duplicate rows are expected by the plan."""
    names = [str(name) for name in grafted.tokenizer.convert_ids_to_tokens(list(range(len(plan))))]
    pairs: list[tuple[str, Any, Any]] = [("input embeddings", _inputs(source.model), _inputs(grafted.model))]
    old_head, new_head = (side.model.get_output_embeddings() for side in (source, grafted))
    if new_head is not None and new_head.weight.data_ptr() != _inputs(grafted.model).data_ptr():
        pairs.append(("output embeddings", old_head.weight.detach(), new_head.weight.detach()))
    if getattr(new_head, "bias", None) is not None:
        pairs.append(("bias of the head", old_head.bias.detach()[:, None], new_head.bias.detach()[:, None]))
    copies = plan.copies()
    is_fixed = ~np.isin(plan.provenance, DRAWS) if product else np.ones(len(plan), bool)
    for name, old, new in pairs:
        is_equal = (
            ((new[copies] - old[plan.indices[plan.indptr[copies]]]).abs() <= (_ROW if product else 0.0)).all(dim=1).numpy()
        )
        yield _row_check(f"copied rows of the {name}", f"{len(copies):,} rows", copies[~is_equal], names, "is not the old row")
        is_finite = new.isfinite().all(dim=1).numpy()
        yield _row_check(f"finite {name}", f"{len(new):,} rows", np.flatnonzero(~is_finite), names, "is not finite")
        differs = _differs(new[: len(plan)], _expected_matrix(plan, name, old))
        yield _row_check(
            f"planned {name}", f"{len(plan):,} rows", np.flatnonzero(differs & is_fixed), names, "is not what the plan makes"
        )
        yield _filling(name, new, plan, names)
    yield _zeros(*pairs[0][1:], plan, names)
    yield _duplicate_rows(*pairs[0][1:], plan, names)


def _expected_matrix(plan: TransferPlan, name: str, old: torch.Tensor) -> torch.Tensor:
    if old.shape[1] == 1:
        return apply.bias(plan, old[:, 0])[:, None]
    return apply.embeddings(plan, old, "inputs" if name.startswith("input") else "outputs")


def _differs(new: torch.Tensor, expected: torch.Tensor) -> NDArray[np.bool_]:
    """[rows]: whether an entry of the row differs from the expected one by more than rounding."""
    tolerance = _ROW + 2 * torch.finfo(new.dtype).eps * expected.float().abs()
    differs: NDArray[np.bool_] = ((new.float() - expected.float()).abs() > tolerance).any(dim=1).numpy()
    return differs


def _filling(name: str, new: torch.Tensor, plan: TransferPlan, names: list[str]) -> CheckResult:
    """Rows without a token are the mean of all others, with a bias too low to be predicted."""
    rows = np.concatenate([plan.filling(), np.arange(len(plan), len(new))])
    token_rows = np.setdiff1d(np.arange(len(new)), rows)
    expected = (
        torch.tensor([[apply.FILLING_BIAS]]) if new.shape[1] == 1 else apply.moments(new, token_rows)[0][None].to(new.dtype)
    )
    failing = rows[_differs(new[torch.from_numpy(rows)], expected.expand(len(rows), -1))]
    return _row_check(f"filling of the {name}", f"{len(rows):,} rows without a token", failing, names, "could be predicted")


def _zeros(old: torch.Tensor, new: torch.Tensor, plan: TransferPlan, names: list[str]) -> CheckResult:
    """Zero rows are copies of zero source rows (a padding row often is zero)."""
    zero_rows = np.flatnonzero((new == 0).all(dim=1).numpy())
    expected_rows = {row for row in plan.copies() if bool((old[plan.indices[plan.indptr[row]]] == 0).all())}
    failing = np.array([row for row in zero_rows if row not in expected_rows], np.int64)
    return _row_check("zero rows", f"{len(zero_rows):,}, copies of zero rows", failing, names, "is zero")


def _duplicate_rows(old: torch.Tensor, new: torch.Tensor, plan: TransferPlan, names: list[str]) -> CheckResult:
    """Equal rows have one recipe: the same mixture, the mean, or copies of equal source rows."""
    groups = defaultdict(list)
    for row, content in enumerate(new[: len(plan)].contiguous().view(torch.uint8).numpy()):
        groups[content.tobytes()].append(row)
    equal = [rows for rows in groups.values() if len(rows) > 1]
    failing = [rows for rows in equal if len({_recipe(plan, row, old) for row in rows}) > 1]
    failing_rows = np.array([row for rows in failing for row in rows], np.int64)
    return _row_check(
        "rows that are equal", f"{len(equal):,} groups of one recipe", failing_rows, names, "equals a row of another recipe"
    )


def _recipe(plan: TransferPlan, row: int, old: torch.Tensor) -> Any:
    """A value that is equal for two rows only if the plan makes them in the same way, such as from the same mixture."""
    entries = slice(plan.indptr[row], plan.indptr[row + 1])
    if plan.provenance[row] in (Provenance.MEAN, Provenance.FILLING):
        return int(plan.provenance[row])
    if plan.provenance[row] in DRAWS:
        return "drawn", int(plan.keys[row]), int(plan.group[row])
    if entries.stop - entries.start == 1 and plan.weights[entries.start] == 1.0:
        return old[plan.indices[entries.start]].view(torch.uint8).numpy().tobytes()
    # The order of the entries does not change the sum.
    order = np.argsort(plan.indices[entries], kind="stable")
    return plan.indices[entries][order].tobytes(), plan.weights[entries][order].tobytes()


def _logits(source: Side, grafted: Side, plan: TransferPlan) -> Iterable[CheckResult]:
    """On text of copied tokens both models have the same logits for these tokens: only the vocabulary has changed.

    A row without a token is never the most likely.
    """
    copies = plan.copies()
    copies = copies[plan.provenance[copies] != Provenance.SPECIAL_ROLE]
    copies = copies[plan.provenance[copies] != Provenance.SAME_ID]
    if not len(copies):
        yield CheckResult(check="logits", detail="no copied tokens to compare")
        return
    source_ids = plan.indices[plan.indptr[copies]].astype(np.int64)
    texts = np.random.default_rng(0).integers(0, len(copies), (_TEXTS, _LENGTH))
    source_logits = _logits_of(source.model, source_ids[texts])[..., torch.from_numpy(source_ids)]
    logits = _logits_of(grafted.model, copies[texts])
    largest = float((source_logits - logits[..., torch.from_numpy(copies)]).abs().max())
    detail = f"largest difference {largest:.1e} on {_TEXTS} texts of {_LENGTH} copied tokens"
    yield CheckResult(check="logits", detail=detail, failures=() if largest <= _LOGITS else (f"more than {_LOGITS:.0e}",))
    filling = np.concatenate([plan.filling(), np.arange(len(plan), logits.shape[-1])])
    token_rows = np.setdiff1d(np.arange(len(plan)), filling)
    if len(filling):
        gap = float((logits[..., filling].amax(dim=-1) - logits[..., token_rows].amax(dim=-1)).max())
        detail = f"at most {gap:.2f} relative to the most likely token"
        yield CheckResult(
            check="logits without a token", detail=detail, failures=() if gap < 0 else ("one is the most likely",)
        )


def _logits_of(model: PreTrainedModel, ids: NDArray[np.int64]) -> torch.Tensor:
    """The model's fp32 logits on token ids [n, L], [n, L, V]; puts a model that is fp32 into evaluation mode."""
    inputs = {"input_ids": torch.from_numpy(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    fp32_model: Any = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    with torch.no_grad():
        logits: torch.Tensor = fp32_model.eval()(**inputs).logits
    return logits


def _inputs(model: PreTrainedModel) -> Any:
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.detach()


def _row_check(check: str, detail: str, rows: NDArray[np.int64], names: list[str], fault: str) -> CheckResult:
    failures = [f"row {row} {names[row] if row < len(names) else '(filling)'!r} {fault}" for row in rows[:_MAX_LISTED].tolist()]
    if len(rows) > _MAX_LISTED:
        failures.append(f"and {len(rows) - _MAX_LISTED:,} more")
    return CheckResult(check=check, detail=detail, failures=tuple(failures))
