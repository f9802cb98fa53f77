"""Whether a transferred model is what its plan says: the linear algebra, the tokens, and the model as a whole."""

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
from data_pipeline.tokenizers import verify as tokenizers
from data_pipeline.tokenizers.canonical import canonical_tokens, role_ids, vocabulary_hash
from trainer.transfer import apply
from trainer.transfer.plan import DRAWS, Provenance, TransferPlan

_TEXTS, _LENGTH = 4, 32
"""Random texts of copied tokens that both models read, and their tokens."""
_LOGITS = 1e-4
"""Largest difference of a logit: the same numbers, added in another order where the matrices have other sizes."""
_ROW = 1e-5
"""Largest difference of a number from what the plan makes: sums of another machine. A format coarser than fp32 adds two steps
of its own."""
_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def verify(source: Side, made: Side, plan: TransferPlan, product: bool = False, given: bool = False) -> list[CheckResult]:
    """All checks, in the order in which a reader should fix what they find.

    Args:
        product: the embeddings are factors multiplied out, so that copies are equal but for rounding, and rows that are
            drawn were drawn in the factors.
        given: the new tokenizer was given, not made from the old one.
    """
    return [
        _fits(source, made, plan),
        _roles(made),
        *tokenizers.verify(made.tokenizer, source.tokenizer, given=given),
        *_matrices(source, made, plan, product),
        *_logits(source, made, plan),
    ]


def _fits(source: Side, made: Side, plan: TransferPlan) -> CheckResult:
    """Plan, tokenizers and matrix sizes belong together."""
    wrong = []
    if plan.source_tokenizer != vocabulary_hash(source.tokenizer):
        wrong.append("the plan was made for another source tokenizer")
    if plan.target_tokenizer != vocabulary_hash(made.tokenizer):
        wrong.append("the plan was made for another new tokenizer")
    rows = len(_inputs(made.model))
    if not len(plan) <= rows or rows != made.model.config.get_text_config().vocab_size:
        wrong.append(f"{len(plan):,} planned rows, a matrix of {rows:,}, vocab_size={made.model.config.vocab_size:,}")
    return CheckResult(check="plan", detail=f"{len(plan):,} planned rows, {rows:,} in the model", failures=tuple(wrong))


def _roles(made: Side) -> CheckResult:
    """Every id in the settings lies in the vocabulary and is the tokenizer's for that role."""
    roles, wrong = role_ids(made.tokenizer), []
    size, checked = len(canonical_tokens(made.tokenizer)), 0
    for settings in (made.model.config, getattr(made.model, "generation_config", None)):
        for name, value in vars(settings).items() if settings is not None else ():
            if not name.endswith("_token_id") or value is None:
                continue
            checked += 1
            role = name.removesuffix("_token_id")
            for number in value if isinstance(value, list) else [value]:
                if not 0 <= number < size:
                    wrong.append(f"{name}={number} is no id of the tokenizer")
                elif role in roles and not isinstance(value, list) and number != roles[role]:
                    wrong.append(f"{name}={number}, the tokenizer's is {roles[role]}")
    return CheckResult(check="roles", detail=f"{checked} ids in the settings", failures=tuple(wrong))


def _matrices(source: Side, made: Side, plan: TransferPlan, product: bool) -> Iterable[CheckResult]:
    """Copies to the last bit, and no row that is not finite, zero or another's twin without reason."""
    names = [str(name) for name in made.tokenizer.convert_ids_to_tokens(list(range(len(plan))))]
    pairs: list[tuple[str, Any, Any]] = [("input embeddings", _inputs(source.model), _inputs(made.model))]
    old_head, new_head = (side.model.get_output_embeddings() for side in (source, made))
    if new_head is not None and new_head.weight.data_ptr() != _inputs(made.model).data_ptr():
        pairs.append(("output embeddings", old_head.weight.detach(), new_head.weight.detach()))
    if getattr(new_head, "bias", None) is not None:
        pairs.append(("bias of the head", old_head.bias.detach()[:, None], new_head.bias.detach()[:, None]))
    copies = plan.copies()
    fixed = ~np.isin(plan.provenance, DRAWS) if product else np.ones(len(plan), bool)
    for name, old, new in pairs:
        same = ((new[copies] - old[plan.indices[plan.indptr[copies]]]).abs() <= (_ROW if product else 0.0)).all(dim=1).numpy()
        yield _finding(f"copied rows of the {name}", f"{len(copies):,} rows", copies[~same], names, "is not the old row")
        finite = new.isfinite().all(dim=1).numpy()
        yield _finding(f"finite {name}", f"{len(new):,} rows", np.flatnonzero(~finite), names, "is not finite")
        apart = _apart(new[: len(plan)], _planned(plan, name, old))
        yield _finding(
            f"planned {name}", f"{len(plan):,} rows", np.flatnonzero(apart & fixed), names, "is not what the plan makes"
        )
        yield _filling(name, new, plan, names)
    yield _zeros(*pairs[0][1:], plan, names)
    yield _twins(*pairs[0][1:], plan, names)


def _planned(plan: TransferPlan, name: str, old: torch.Tensor) -> torch.Tensor:
    if old.shape[1] == 1:
        return apply.bias(plan, old[:, 0])[:, None]
    return apply.embeddings(plan, old, "inputs" if name.startswith("input") else "outputs")


def _apart(new: torch.Tensor, expected: torch.Tensor) -> NDArray[np.bool_]:
    """[rows]: whether a number of the row is not the expected one, rounding aside."""
    allowed = _ROW + 2 * torch.finfo(new.dtype).eps * expected.float().abs()
    apart: NDArray[np.bool_] = ((new.float() - expected.float()).abs() > allowed).any(dim=1).numpy()
    return apart


def _filling(name: str, new: torch.Tensor, plan: TransferPlan, names: list[str]) -> CheckResult:
    """A row without a token is the mean of all others, its bias so low that nothing makes up for it."""
    rows = np.concatenate([plan.filling(), np.arange(len(plan), len(new))])
    real = np.setdiff1d(np.arange(len(new)), rows)
    expected = torch.tensor([[apply.FILLING_BIAS]]) if new.shape[1] == 1 else apply.moments(new, real)[0][None].to(new.dtype)
    wrong = rows[_apart(new[torch.from_numpy(rows)], expected.expand(len(rows), -1))]
    return _finding(f"filling of the {name}", f"{len(rows):,} rows without a token", wrong, names, "could be predicted")


def _zeros(old: torch.Tensor, new: torch.Tensor, plan: TransferPlan, names: list[str]) -> CheckResult:
    """Zero rows are copies of old zero rows (a padding row often is one)."""
    zero = np.flatnonzero((new == 0).all(dim=1).numpy())
    expected = {row for row in plan.copies() if bool((old[plan.indices[plan.indptr[row]]] == 0).all())}
    wrong = np.array([row for row in zero if row not in expected], np.int64)
    return _finding("zero rows", f"{len(zero):,}, copies of zero rows", wrong, names, "is zero")


def _twins(old: torch.Tensor, new: torch.Tensor, plan: TransferPlan, names: list[str]) -> CheckResult:
    """Equal rows have one recipe: the same mixture, the mean, or copies of rows that were equal already."""
    groups = defaultdict(list)
    for row, content in enumerate(new[: len(plan)].contiguous().view(torch.uint8).numpy()):
        groups[content.tobytes()].append(row)
    equal = [rows for rows in groups.values() if len(rows) > 1]
    wrong = [rows for rows in equal if len({_recipe(plan, row, old) for row in rows}) > 1]
    listed = np.array([row for rows in wrong for row in rows], np.int64)
    return _finding(
        "rows that are equal", f"{len(equal):,} groups of one recipe", listed, names, "has a twin of another recipe"
    )


def _recipe(plan: TransferPlan, row: int, old: torch.Tensor) -> Any:
    part = slice(plan.indptr[row], plan.indptr[row + 1])
    if plan.provenance[row] in (Provenance.MEAN, Provenance.FILLING):
        return int(plan.provenance[row])
    if plan.provenance[row] in DRAWS:
        return "drawn", int(plan.keys[row]), int(plan.group[row])
    if part.stop - part.start == 1 and plan.weights[part.start] == 1.0:
        return old[plan.indices[part.start]].view(torch.uint8).numpy().tobytes()
    # A sum does not depend on the order in which two of its terms are written.
    order = np.argsort(plan.indices[part], kind="stable")
    return plan.indices[part][order].tobytes(), plan.weights[part][order].tobytes()


def _logits(source: Side, made: Side, plan: TransferPlan) -> Iterable[CheckResult]:
    """On text of copied tokens only, both models say the same of them: nothing but the vocabulary has changed. A token is
    likelier than any row without one."""
    copies = plan.copies()
    copies = copies[plan.provenance[copies] != Provenance.SPECIAL_ROLE]
    copies = copies[plan.provenance[copies] != Provenance.SAME_ID]
    if not len(copies):
        yield CheckResult(check="logits", detail="no copied tokens to compare on")
        return
    old = plan.indices[plan.indptr[copies]].astype(np.int64)
    chosen = np.random.default_rng(0).integers(0, len(copies), (_TEXTS, _LENGTH))
    before = _answers(source.model, old[chosen])[..., torch.from_numpy(old)]
    answers = _answers(made.model, copies[chosen])
    largest = float((before - answers[..., torch.from_numpy(copies)]).abs().max())
    said = f"largest difference {largest:.1e} on {_TEXTS} texts of {_LENGTH} copied tokens"
    yield CheckResult(check="logits", detail=said, failures=() if largest <= _LOGITS else (f"more than {_LOGITS:.0e}",))
    filling = np.concatenate([plan.filling(), np.arange(len(plan), answers.shape[-1])])
    real = np.setdiff1d(np.arange(len(plan)), filling)
    if len(filling):
        gap = float((answers[..., filling].amax(dim=-1) - answers[..., real].amax(dim=-1)).max())
        said = f"at most {gap:.2f} beside the likeliest token"
        yield CheckResult(check="logits without a token", detail=said, failures=() if gap < 0 else ("one is the likeliest",))


def _answers(model: PreTrainedModel, ids: NDArray[np.int64]) -> torch.Tensor:
    inputs = {"input_ids": torch.from_numpy(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    wide: Any = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    with torch.no_grad():
        logits: torch.Tensor = wide.eval()(**inputs).logits
    return logits


def _inputs(model: PreTrainedModel) -> Any:
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.detach()


def _finding(check: str, said: str, rows: NDArray[np.int64], names: list[str], what: str) -> CheckResult:
    listed = [f"row {row} {names[row] if row < len(names) else '(filling)'!r} {what}" for row in rows[:_LISTED].tolist()]
    if len(rows) > _LISTED:
        listed.append(f"and {len(rows) - _LISTED:,} more")
    return CheckResult(check=check, detail=said, failures=tuple(listed))
