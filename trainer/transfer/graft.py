"""A model with a new vocabulary: a plan applied to everything in it that has one row per token."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers.canonical import role_ids
from trainer.models.loading import check_pad_id
from trainer.transfer import apply
from trainer.transfer.plan import Provenance, TransferPlan

MULTIPLE = 128
"""Rows of the vocabulary are filled up to a multiple of this: odd sizes misalign DeepSpeed's flat buffers."""


def graft(model: PreTrainedModel, plan: TransferPlan, tokenizer: PreTrainedTokenizerFast) -> None:
    """Replaces the vocabulary of `model` in place: input embeddings, output embeddings if they are not the same
    matrix, the bias of the head, and the ids of special tokens in its configuration. Takes the size of the new matrices
    twice in memory beside the model.

    Raises:
        ModelError: the plan is for a larger vocabulary than the model's, or the padding id would move positions.
    """
    check_pad_id(model.config, tokenizer.pad_token_id)
    _check_known(model)
    wanted = plan.pad_to(-(-len(plan) // MULTIPLE) * MULTIPLE)
    # transformers types both as plain modules; what counts is that they have a weight, and perhaps a bias.
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head is not None and head.weight.data_ptr() == inputs.weight.data_ptr()
    new_inputs = apply.embeddings(wanted, inputs.weight.detach())
    new_outputs = None if head is None or tied else apply.embeddings(wanted, head.weight.detach(), "outputs")
    old_bias = getattr(head, "bias", None)
    new_bias = None if old_bias is None else apply.bias(wanted, old_bias.detach())
    twins = [] if old_bias is None else _twins(model, head, len(old_bias))
    apart = {} if head is None or old_bias is not None else {
        name: apply.bias(wanted, bias.detach()) for name, bias in _biases_apart(model, len(head.weight))
    }  # fmt: skip
    final_bias: Any = getattr(model, "final_logits_bias", None)  # BART's family keeps the head's bias as a buffer [1, S]
    new_final_bias = None if final_bias is None else apply.bias(wanted, final_bias[0])
    model.resize_token_embeddings(len(wanted), mean_resizing=False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        grown: Any = model.get_input_embeddings()
        grown.weight.copy_(new_inputs)
        if new_outputs is not None:
            head.weight.copy_(new_outputs)
        if new_bias is not None:
            head.bias.copy_(new_bias)
        if new_final_bias is not None:
            final: Any = model.final_logits_bias
            final[0].copy_(new_final_bias)
    if not tied:
        # A copy, not the same parameter: transformers saves a shared one once, and ties it again only in tied models.
        for module in twins:
            module.bias = torch.nn.Parameter(head.bias.detach().clone())
    for name, bias in apart.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(bias))
    _set_ids(model, plan, tokenizer)
    _suppress(model, wanted)


def _twins(model: PreTrainedModel, head: torch.nn.Module, rows: int) -> list[torch.nn.Module]:
    """Modules that hold the head's bias a second time (`cls.predictions.bias`); resizing leaves theirs at the old size
    when the matrices are not tied."""
    return [
        module
        for module in model.modules()
        if module is not head and isinstance(bias := getattr(module, "bias", None), torch.nn.Parameter)
        and bias.shape == (rows,) and getattr(module, "decoder", None) is head
    ]  # fmt: skip


def _biases_apart(model: PreTrainedModel, rows: int) -> list[tuple[str, torch.nn.Parameter]]:
    """A head's biases that it adds behind a layer without one, as ESM's does; resizing does not know them."""
    return [(name, part) for name, part in _outside(model) if part.shape == (rows,)]


def _outside(model: PreTrainedModel) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights that the model has beside its body: those of the head."""
    inner = {id(part) for part in model.base_model.parameters()}
    return [(name, part) for name, part in model.named_parameters() if id(part) not in inner]


def _check_known(model: PreTrainedModel) -> None:
    """A head with more than one matrix of a row per token, such as MobileBERT's, would keep the old tokens in the others."""
    head: Any = model.get_output_embeddings()
    weight = None if head is None else getattr(head, "weight", None)
    if weight is None:
        return
    others = [name for name, part in _outside(model) if part is not weight and part.ndim > 1 and len(weight) in part.shape]
    if others:
        raise ModelError(
            f"{type(model).__name__} has weights per token that Scion does not know: {', '.join(others)}.",
            "transfer",
            "Take a model whose head is one linear layer onto the vocabulary.",
        )


def _set_ids(model: PreTrainedModel, plan: TransferPlan, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every `*_token_id` of the model's settings: by role where the name is a role, else where its old id went to."""
    roles = role_ids(tokenizer)
    special = [row for row in plan.copies() if plan.provenance[row] == Provenance.SPECIAL_ROLE]
    moved = {int(plan.indices[plan.indptr[row]]): int(row) for row in reversed(special)}

    def new_id(role: str, old: int | list[int] | None) -> int | list[int] | None:
        if isinstance(old, list):
            return [moved[one] for one in old if one in moved] or None
        return roles[role] if role in roles else None if old is None else moved.get(old)

    for settings in (model.config, getattr(model, "generation_config", None)):
        for name, old in list(vars(settings).items()) if settings is not None else ():
            if name.endswith("_token_id") and old is not None:
                setattr(settings, name, new_id(name.removesuffix("_token_id"), old))
    embedding: Any = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = roles.get("pad")


def _suppress(model: PreTrainedModel, plan: TransferPlan) -> None:
    """Generation leaves out ids without a token, whatever its temperature; what the old model left out has new ids."""
    settings: Any = getattr(model, "generation_config", None)
    if settings is None:
        return
    copies = plan.copies()
    moved = dict(zip(plan.indices[plan.indptr[copies]].tolist(), copies.tolist(), strict=True))
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        old = [moved[number] for number in getattr(settings, name, None) or () if number in moved]
        setattr(settings, name, (old + (plan.filling().tolist() if name == "suppress_tokens" else [])) or None)
