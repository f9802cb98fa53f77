"""Cross-entropy of the tokens to predict: the masked ones (Devlin et al. 2019), or each next one.

    l_m = -log softmax( W h_m + b )[label_m]

Which tokens are targets is the collator's decision (`data_pipeline/feed`). Logits of all targets at once would fill the memory
where the vocabulary is large, so the product with W runs chunk by chunk (`linear_cross_entropy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from trainer.objectives.objective import Needs, TokenStates

if TYPE_CHECKING:
    import torch


class Labelled(Protocol):
    """A batch with labels."""

    @property
    def labels(self) -> torch.Tensor:
        """int [M]; `IGNORED` counts for nothing."""
        ...


class Labels(NamedTuple):
    """Labels alone, padded to a fixed number."""

    labels: torch.Tensor


@dataclass(frozen=True, slots=True)
class LanguageModeling:
    """The negative log-likelihood of each target."""

    @property
    def needs(self) -> Needs:
        return Needs(token_states=True)

    def __call__(self, reps: TokenStates, batch: Labelled) -> torch.Tensor:
        """fp32 [M]; 0 where the label is `IGNORED`."""
        import torch

        from trainer.objectives.linear_cross_entropy import IGNORED, chunked_cross_entropy, linear_cross_entropy

        if reps.project is not None:
            return chunked_cross_entropy(reps.project, reps.vocabulary, reps.states, batch.labels)
        if reps.weight is None:
            logits = reps.states.float()
            return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none", ignore_index=IGNORED)
        return linear_cross_entropy(reps.states, reps.weight, reps.bias, batch.labels)
