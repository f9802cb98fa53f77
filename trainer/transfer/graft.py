"""Grafts a new vocabulary onto a model: applies a plan to everything in it that has one row per token."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers.canonical import role_ids
from trainer.models.loading import check_pad_id
from trainer.transfer import apply
from trainer.transfer.plan import Provenance, TransferPlan

MULTIPLE = 128
"""The vocabulary is padded to a multiple of this: odd sizes misalign DeepSpeed's flat buffers."""


def graft(model: PreTrainedModel, plan: TransferPlan, tokenizer: PreTrainedTokenizerFast) -> None:
    """Replaces the vocabulary of `model` in place.

    Changes the input embeddings, untied output embeddings, the bias of the head, and the ids of special tokens in the
    config. Memory: the model and twice the size of the new matrices.

    Raises:
        ModelError: the plan is for a larger vocabulary than the model's, or the padding id would shift positions.
    """
    check_pad_id(model.config, tokenizer.pad_token_id)
    _check_single_matrix(model)
    padded_plan = plan.pad_to(-(-len(plan) // MULTIPLE) * MULTIPLE)
    # transformers types both as plain modules; they have a weight, and perhaps a bias.
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    is_tied = head is not None and head.weight.data_ptr() == inputs.weight.data_ptr()
    new_inputs = apply.embeddings(padded_plan, inputs.weight.detach())
    new_outputs = None if head is None or is_tied else apply.embeddings(padded_plan, head.weight.detach(), "outputs")
    old_bias = getattr(head, "bias", None)
    new_bias = None if old_bias is None else apply.bias(padded_plan, old_bias.detach())
    duplicates = [] if old_bias is None else _duplicate_biases(model, head, len(old_bias))
    separate_biases = (
        {}
        if head is None or old_bias is not None
        else {name: apply.bias(padded_plan, bias.detach()) for name, bias in _separate_biases(model, len(head.weight))}
    )
    final_bias: Any = getattr(model, "final_logits_bias", None)  # BART's family keeps the head's bias as a buffer [1, S]
    new_final_bias = None if final_bias is None else apply.bias(padded_plan, final_bias[0])
    model.resize_token_embeddings(len(padded_plan), mean_resizing=False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        resized: Any = model.get_input_embeddings()
        resized.weight.copy_(new_inputs)
        if new_outputs is not None:
            head.weight.copy_(new_outputs)
        if new_bias is not None:
            head.bias.copy_(new_bias)
        if new_final_bias is not None:
            final: Any = model.final_logits_bias
            final[0].copy_(new_final_bias)
    if not is_tied:
        # A copy, not the same parameter: transformers saves a shared parameter once, and re-ties it only in tied models.
        for module in duplicates:
            module.bias = torch.nn.Parameter(head.bias.detach().clone())
    _replace_parameters(model, separate_biases)
    _update_special_ids(model, plan, tokenizer)
    _update_suppressed_ids(model, padded_plan)


def _replace_parameters(model: PreTrainedModel, values: dict[str, torch.Tensor]) -> None:
    """Puts new parameters with these values in the place of the model's, by name; the shapes may differ."""
    for name, value in values.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(value))


def _duplicate_biases(model: PreTrainedModel, head: torch.nn.Module, rows: int) -> list[torch.nn.Module]:
    """Modules that hold the head's bias a second time (`cls.predictions.bias`).

    In untied models resizing leaves them at the old size.
    """
    return [
        module
        for module in model.modules()
        if module is not head
        and isinstance(bias := getattr(module, "bias", None), torch.nn.Parameter)
        and bias.shape == (rows,)
        and getattr(module, "decoder", None) is head
    ]


def _separate_biases(model: PreTrainedModel, rows: int) -> list[tuple[str, torch.nn.Parameter]]:
    """Biases that a head adds after a layer without one, as ESM's does; resizing ignores them."""
    return [(name, weight) for name, weight in _head_parameters(model) if weight.shape == (rows,)]


def _head_parameters(model: PreTrainedModel) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights outside the body: those of the head."""
    body = {id(weight) for weight in model.base_model.parameters()}
    return [(name, weight) for name, weight in model.named_parameters() if id(weight) not in body]


def _check_single_matrix(model: PreTrainedModel) -> None:
    """Rejects a head with several matrices of one row per token, as MobileBERT's: the others would keep the old tokens."""
    head: Any = model.get_output_embeddings()
    weight = None if head is None else getattr(head, "weight", None)
    if weight is None:
        return
    others = [
        name
        for name, matrix in _head_parameters(model)
        if matrix is not weight and matrix.ndim > 1 and len(weight) in matrix.shape
    ]
    if others:
        raise ModelError(
            f"{type(model).__name__} has weights per token that Scion cannot transfer: {', '.join(others)}.",
            "transfer",
            "Take a model whose head is one linear layer onto the vocabulary.",
        )


def _update_special_ids(model: PreTrainedModel, plan: TransferPlan, tokenizer: PreTrainedTokenizerFast) -> None:
    """Updates every `*_token_id` of the model's configs: by role if the name is a role, else to where the old id moved."""
    roles = role_ids(tokenizer)
    special_rows = [row for row in plan.copies() if plan.provenance[row] == Provenance.SPECIAL_ROLE]
    new_of_old = {int(plan.indices[plan.indptr[row]]): int(row) for row in reversed(special_rows)}

    def new_id(role: str, old: int | list[int] | None) -> int | list[int] | None:
        if isinstance(old, list):
            return [new_of_old[number] for number in old if number in new_of_old] or None
        return roles[role] if role in roles else None if old is None else new_of_old.get(old)

    for config in (model.config, getattr(model, "generation_config", None)):
        for name, old in list(vars(config).items()) if config is not None else ():
            if name.endswith("_token_id") and old is not None:
                setattr(config, name, new_id(name.removesuffix("_token_id"), old))
    embedding: Any = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = roles.get("pad")


def _update_suppressed_ids(model: PreTrainedModel, plan: TransferPlan) -> None:
    """Keeps ids without a token out of generation at any temperature, and maps the ids that the old model suppressed."""
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return
    copies = plan.copies()
    new_of_old = dict(zip(plan.indices[plan.indptr[copies]].tolist(), copies.tolist(), strict=True))
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        suppressed = [new_of_old[number] for number in getattr(config, name, None) or () if number in new_of_old]
        setattr(config, name, (suppressed + (plan.filling().tolist() if name == "suppress_tokens" else [])) or None)
