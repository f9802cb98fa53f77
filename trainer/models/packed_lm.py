"""Language-model loss of a transformers model on packed rows, computing only what the loss needs.

Where a model's time goes when its vocabulary is large (`specs/performance.md`): the product with the vocabulary at places
without a target, logits that are stored, masks that keep attention off the fast kernels, and, on a GPU, launching small
kernels. So the head runs on targets only, some at a time; rows of one document need no mask; and the whole is one compiled
graph of fixed shapes. `check` finds out how much of this an architecture bears, by comparing it with the model's own forward.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from data_pipeline.feed.target_batch import TargetBatch
from trainer.models import bidirectional, forward_check
from trainer.models.flops import Flops
from trainer.models.forward_check import ForwardCheck, ForwardPath
from trainer.models.graphs import compile_for_training
from trainer.models.heads import HeadTap
from trainer.models.loading import position_offset, quiet
from trainer.models.packed_attention import Kernel, implementation, separate_documents
from trainer.models.single_rows import single_rows
from trainer.objectives.language_modeling import Labels, LanguageModeling
from trainer.objectives.linear_cross_entropy import IGNORED
from trainer.objectives.objective import Needs, Objective, TokenStates

_DROPOUTS = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")


class PackedLM(torch.nn.Module):
    """A `Trainable`: `forward(batch)` is the objective of each of the batch's targets, fp32 [M].

    Attention stays within a document, and looks back only if `causal`; positions count from each document's start.

    Args:
        share: the largest share of a row's tokens that are targets; graphs have room for as many.
        objective: reads `TokenStates`; the negative log-likelihood where not given.
    """

    def __init__(self, model: PreTrainedModel, causal: bool, share: float = 1.0, objective: Objective | None = None) -> None:
        super().__init__()
        self.model = model
        self.objective = LanguageModeling() if objective is None else objective
        self.causal, self._share = causal, share
        self.own_attention = str(model.config._attn_implementation)
        self.tap = HeadTap(model)
        self._offset = position_offset(model.config)
        self._graph: Callable[..., torch.Tensor] = self._losses
        self._reasons: tuple[str, ...] = ()
        self._dropout = max(float(getattr(model.config, name, None) or 0.0) for name in _DROPOUTS)
        self.use_path(ForwardPath(kernel=self.kernels[0], head="tapped"))

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Those that may be tried where the weights are now, the fastest first."""
        return forward_check.kernels(self._on_gpu(), self._dropout)

    def _on_gpu(self) -> bool:
        return next(self.model.parameters()).is_cuda

    def use_path(self, way: ForwardPath) -> None:
        """From now on computes in this way."""
        self.path = way
        with quiet():  # a model that cannot change its attention warns each time; the check finds it out
            self.model.set_attn_implementation(self.own_attention if way.kernel is None else implementation(way.kernel))

    def check(self, length: int) -> ForwardCheck:
        """Takes the leanest way whose logits are the model's own on each document alone, on this device, in this precision.

        Raises:
            ModelError: there is none, or the model is to be bidirectional and is not.
        """
        found = forward_check.check(self, length)
        self.use_check(found)
        bidirectional.check_flow(self.model.base_model)
        return found

    def use_check(self, found: ForwardCheck) -> None:
        """Takes the way that a check found, perhaps that of another rank."""
        self.use_path(found.path)
        self._reasons = found.reasons

    def flops(self) -> Flops:
        return Flops.of(self.model, head=True)

    def slow_reasons(self) -> list[str]:
        """What keeps this model from the fast path, in words."""
        kind, flex = self.model.config.model_type, self._on_gpu() and "flex" not in self.kernels
        found = {
            f"{kind} is trained on rows of one document each, padded: packed rows would differ from its own forward "
            f"({'; '.join(self._reasons)})": self.path.kernel is None,
            f"the head of {kind} is no plain linear layer at its end: all logits of the targets are kept": (
                self.path.head == "gathered"
            ),
            f"the head of {kind} computes logits at every place, not only at targets": self.path.head == "whole",
            "packed rows have a whole mask: FlexAttention knows no dropout, set that of attention to 0 in config.json": flex,
        }
        return [reason for reason, holds in found.items() if holds]

    def compile_graph(self) -> None:
        """From now on one graph of fixed shapes; the first batch of each shape takes a minute or more."""
        if self.path.kernel is not None and self.path.head != "whole":
            self._graph = compile_for_training(self._losses)

    def compilable_layers(self) -> list[torch.nn.Module]:
        """Those of which each can be a graph of fixed shapes."""
        return [part for part in self.modules() if isinstance(part, GradientCheckpointingLayer)]

    def forward(self, batch: TargetBatch) -> torch.Tensor:
        """The loss at each target of the packed rows, [M]."""
        inputs, places, segments = self._inputs(batch)
        # As many on every rank and in every step, so that graphs fit and ranks gather ZeRO-3's weights as often.
        rows, length = batch.input_ids.shape
        room = max(0, rows * math.floor(length * self._share + 0.5) - len(places))
        places, labels = (
            torch.nn.functional.pad(part, (0, room), value=value) for part, value in ((places, 0), (batch.labels, IGNORED))
        )
        with separate_documents(segments), self.tap.gathering(places, self.path.head):
            return self._graph(inputs, places, labels)[: len(batch.places)]

    def represent(self, batch: TargetBatch, needs: Needs) -> TokenStates:
        """Hidden states at the batch's targets."""
        assert needs == Needs(token_states=True), "a language model has token states only"
        inputs, places, segments = self._inputs(batch)
        with separate_documents(segments), self.tap.gathering(places, self.path.head):
            return self._token_states(inputs, places)

    def logits(self, batch: TargetBatch) -> torch.Tensor:
        """[M, V]"""
        reps = self.represent(batch, Needs(token_states=True))
        return self.tap.output(reps.states) if self.path.head == "tapped" else reps.states

    def _inputs(self, batch: TargetBatch) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]:
        """The model's keyword arguments, the targets' places in their rows, and the documents that masks keep apart."""
        cache = {"use_cache": False} if self.causal else {}
        if self.path.kernel is None:
            ids, mask, places = single_rows(batch)
            return {"input_ids": ids, "attention_mask": mask} | cache, places, None
        if not batch.is_packed:  # the model's own positions, and no mask where it wants none
            return {"input_ids": batch.input_ids} | cache, batch.places, None
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.positions + self._offset}
        return inputs | cache, batch.places, batch.segments

    def _token_states(self, inputs: dict[str, Any], places: torch.Tensor) -> TokenStates:
        """The model's output at `places`: logits [M, V], or the input of its output layer, [M, H]."""
        out = self.model(**inputs).logits
        states = out.flatten(0, 1)[places] if self.path.head == "whole" else out[0]
        if self.path.head != "tapped":
            return TokenStates(states, None, None)
        output = self.tap.output
        if hasattr(output.weight, "ds_id"):  # ZeRO-3 gathers a layer's weights when the layer is called, not before
            return TokenStates(states, output.weight, output.bias, self._project, output.out_features)
        return TokenStates(states, output.weight, output.bias)

    def _project(self, states: torch.Tensor) -> torch.Tensor:
        with self.tap.closed():
            return self.tap.output(states)

    def _losses(self, inputs: dict[str, Any], places: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.objective(self._token_states(inputs, places), Labels(labels))


def bits_per_byte(nll: float, targets: int, text_tokens: int, text_bytes: int) -> float:
    """From the mean loss of a target to bits per byte of text: comparable between tokenizers, unlike loss per token.

    Args:
        nll: summed negative log-likelihood of `targets` tokens, in nats.
        text_tokens, text_bytes: size of the text that the targets are a sample of.
    """
    return nll / targets * text_tokens / (text_bytes * math.log(2))
