"""Runs any language-model head on targets only.

A hook after the body passes on only the hidden states of the targets, so the model's own head computes no other logits. If
the last step of that head is a plain linear layer, the layer can pass on its input instead: the loss then multiplies with its
weights chunk by chunk (`objectives/linear_cross_entropy.py`). A test forward finds out whether either works for a model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

Head = Literal["tapped", "gathered", "whole"]
"""`tapped`: loss from the output layer's input; `gathered`: logits at targets only; `whole`: logits at every place."""
_LARGE = 1e4
"""Logits so large that a soft cap or a factor certainly changes them."""


class HeadTap:
    """Hooks on the hidden states and the output layer of `model`; outside of `gathering` they change nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.output: Any = model.get_output_embeddings()
        self._places: torch.Tensor | None = None
        self._is_open = False
        self._fake_logits: torch.Tensor | None = None
        for body in _bodies(model):
            body.register_forward_hook(self._gather)
        if type(self.output) is torch.nn.Linear:
            self.output.forward = self._output_forward  # type: ignore[method-assign, assignment]

    @contextmanager
    def gathering(self, places: torch.Tensor, head: Head) -> Iterator[None]:
        """Within the block the model's `logits` are those at `places` [M] of the flattened rows, [1, M, V].

        For a tapped head they are the input of its output layer, [1, M, H].
        """
        self._places, self._is_open = None if head == "whole" else places, head == "tapped"
        try:
            yield
        finally:
            self._places, self._is_open = None, False

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Within the block the output layer computes logits even if it is tapped."""
        before, self._is_open = self._is_open, False
        try:
            yield
        finally:
            self._is_open = before

    def leanest_head(self, model: PreTrainedModel, ids: torch.Tensor, close: float) -> Head:
        """The leanest head that gives the same logits as the model's own.

        Args:
            ids: int [1, L], where L is at least 3.
            close: the tolerance for equal logits, relative to their norm.
        """
        places = torch.tensor([ids.shape[1] - 1, 1], device=ids.device)
        with torch.no_grad():
            own_logits = model(input_ids=ids).logits[0, places]
            with self.gathering(places, "gathered"):
                gathered = model(input_ids=ids).logits
                if gathered.shape != own_logits[None].shape or (gathered[0] - own_logits).norm() > close * own_logits.norm():
                    return "whole"
                if type(self.output) is not torch.nn.Linear:
                    return "gathered"
                if not self._passes_input(model, ids, places):
                    return "gathered"
                # Replaces the layer's logits by large ones: they come out unchanged only if nothing follows the layer.
                self._fake_logits = (
                    torch.linspace(-_LARGE, _LARGE, own_logits.numel(), device=own_logits.device)
                    .view_as(gathered)
                    .to(own_logits.dtype)
                )
                try:
                    is_unchanged = torch.equal(model(input_ids=ids).logits, self._fake_logits)
                finally:
                    self._fake_logits = None
        return "tapped" if is_unchanged else "gathered"

    def _passes_input(self, model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor) -> bool:
        """Whether the layer's input comes out of the model unchanged.

        If a bias follows the layer, even a zero one, the shapes do not match.
        """
        try:
            with self.gathering(places, "tapped"):
                output = model(input_ids=ids).logits
        except RuntimeError:  # shapes that do not match
            return False
        return bool(output.shape == (1, len(places), self.output.in_features))

    def _gather(self, body: torch.nn.Module, arguments: Any, output: Any) -> Any:
        """Forward hook: the body's output with only the hidden states at the chosen places, [1, M, H], if any are set."""
        if self._places is None:
            return output
        places, self._places = self._places, None  # once only: an inner body runs this hook before the outer one
        hidden = output[0].flatten(0, 1)[places][None]
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        return output

    def _output_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._fake_logits is not None:
            return self._fake_logits
        return hidden if self._is_open else torch.nn.Linear.forward(self.output, hidden)


def _bodies(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that may give the head its hidden states: the decoder within the base model, then the base model."""
    base: Any = model.base_model
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    return [part for part in dict.fromkeys((decoder, base)) if part is not None and part is not model]
