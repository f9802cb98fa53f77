"""A language-model head that works on targets only, whatever the head is.

A hook behind the body hands on the hidden states of the targets alone, so that the model's own head computes no other logits.
Where the last step of that head is a plain linear layer, the layer can hand on what it is given: the loss then multiplies
with its weights chunk by chunk (`objectives/linear_cross_entropy.py`). Both are found by trying, not by the model's name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

Head = Literal["tapped", "gathered", "whole"]
"""Loss from the output layer's input; logits at targets only; logits at every place."""
_LARGE = 1e4
"""Logits that a soft cap or a factor would change beyond doubt."""


class HeadTap:
    """Hooks in `model` for its hidden states and its output layer; without `gathering` they change nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.output: Any = model.get_output_embeddings()
        self._places: torch.Tensor | None = None
        self._open = False
        self._answer: torch.Tensor | None = None
        for body in _bodies(model):
            body.register_forward_hook(self._gather)
        if type(self.output) is torch.nn.Linear:
            self.output.forward = self._through  # type: ignore[method-assign, assignment]

    @contextmanager
    def gathering(self, places: torch.Tensor, head: Head) -> Iterator[None]:
        """Within the block the model's `logits` are those at `places` [M] of the flattened rows, [1, M, V]. A tapped head gives
        the input of its output layer there instead, [1, M, H]."""
        self._places, self._open = None if head == "whole" else places, head == "tapped"
        try:
            yield
        finally:
            self._places, self._open = None, False

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Within the block the output layer multiplies, though it is tapped."""
        before, self._open = self._open, False
        try:
            yield
        finally:
            self._open = before

    def leanest_head(self, model: PreTrainedModel, ids: torch.Tensor, close: float) -> Head:
        """The leanest way that gives what the model's own head gives.

        Args:
            ids: int [1, L], L of at least 3.
            close: the largest difference between equal logits, as a part of their size.
        """
        places = torch.tensor([ids.shape[1] - 1, 1], device=ids.device)
        with torch.no_grad():
            own = model(input_ids=ids).logits[0, places]
            with self.gathering(places, "gathered"):
                gathered = model(input_ids=ids).logits
                if gathered.shape != own[None].shape or (gathered[0] - own).norm() > close * own.norm():
                    return "whole"
                if type(self.output) is not torch.nn.Linear:
                    return "gathered"
                if not self._taps(model, ids, places):
                    return "gathered"
                # Large logits in place of the layer's: they come out as they are only where nothing stands behind it.
                self._answer = torch.linspace(-_LARGE, _LARGE, own.numel(), device=own.device).view_as(gathered).to(own.dtype)
                try:
                    untouched = torch.equal(model(input_ids=ids).logits, self._answer)
                finally:
                    self._answer = None
        return "tapped" if untouched else "gathered"

    def _taps(self, model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor) -> bool:
        """Whether the layer's input comes out of the model as it is. A bias that is added behind the layer does not fit it,
        also where it is still zero."""
        try:
            with self.gathering(places, "tapped"):
                found = model(input_ids=ids).logits
        except RuntimeError:  # tensors of sizes that do not go together
            return False
        return bool(found.shape == (1, len(places), self.output.in_features))

    def _gather(self, body: torch.nn.Module, arguments: Any, output: Any) -> Any:
        if self._places is None:
            return output
        places, self._places = self._places, None  # the body of a body has been here already
        hidden = output[0].flatten(0, 1)[places][None]
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        return output

    def _through(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._answer is not None:
            return self._answer
        return hidden if self._open else torch.nn.Linear.forward(self.output, hidden)


def _bodies(model: PreTrainedModel) -> list[torch.nn.Module]:
    """What may give the head its hidden states: the model without a head, or the decoder in it, the inner one first."""
    base: Any = model.base_model
    inner = base.get_decoder() if hasattr(base, "get_decoder") else base
    return [part for part in dict.fromkeys((inner, base)) if part is not None and part is not model]
