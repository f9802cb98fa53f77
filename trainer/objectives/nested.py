"""One embedder of many widths and depths: the losses of truncated vectors, and of vectors from early exits.

Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147, section 3), over widths m with weights c_m:

    L = sum_m c_m l(z[:m]) / sum_m c_m

2D Matryoshka (Li et al. 2024, arXiv:2402.14776, section 3) adds the same for exits behind inner layers, and pulls an exit's
vector towards the last layer's: KL(softmax(z_last / T) || softmax(z_exit / T)) * T, without gradient to the last layer.

Differences from the papers: every exit and width counts in every step, none is sampled; in one forward pass of the encoder they
cost little. The loss is a mean over widths, so that its size does not depend on their number. Any objective on vectors can be
nested, and the gradient of a batch in several chunks stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import ConfigError
from trainer.objectives.objective import Gathered, Needs, Objective, PairVectors

if TYPE_CHECKING:
    import torch

    from data_pipeline.pairs.batch import PairBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedConfig:
    """Widths and exits at which the embedder can be used, beside the full ones."""

    widths: tuple[int, ...] = ()
    """Numbers of leading values of a vector, such as 256, 128, 64."""
    width_weights: tuple[float, ...] = ()
    """The weight of each width's loss; the full width has 1, and so has each when not given."""
    exits: tuple[int, ...] = ()
    """Numbers of layers behind which a text's vector may be taken, such as 3 of 6."""
    exit_weight: float = 1.0
    """The weight of the exits' mean loss; the last layer's has 1."""
    alignment: float = 1.0
    """The weight of the divergence between an exit's vector and the last layer's."""
    alignment_temperature: float = 0.3
    """Divides both vectors before their softmax."""

    def __post_init__(self) -> None:
        for name, values in (("widths", self.widths), ("exits", self.exits)):
            if len(set(values)) < len(values) or min(values, default=1) < 1:
                raise ConfigError(f"{name} must be distinct and at least 1, got {list(values)}.", f"embed.nested.{name}")
        if self.width_weights and len(self.width_weights) != len(self.widths):
            raise ConfigError(
                f"there are {len(self.widths)} widths and {len(self.width_weights)} weights.", "embed.nested.width_weights"
            )
        numbers = (*self.width_weights, self.exit_weight, self.alignment)
        if min(numbers) < 0 or self.alignment_temperature <= 0:
            raise ConfigError("weights must be at least 0, and the temperature above 0.", "embed.nested")

    @property
    def is_used(self) -> bool:
        return bool(self.widths or self.exits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    """An objective on vectors of several widths and depths."""

    inner: Objective
    config: NestedConfig = field(default_factory=NestedConfig)

    @property
    def needs(self) -> Needs:
        return replace(self.inner.needs, exits=self.config.exits)

    def __call__(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The loss of each of this rank's pairs, fp32 [B]; `reps` hold vectors [n, exits + 1, d], the last layer's last."""
        exits = self.config.exits
        if not exits:
            return self._over_widths(reps, batch)
        last = _at(reps, len(exits))
        losses = self._over_widths(last, batch)
        for number in range(len(exits)):
            shallow = _at(reps, number)
            losses = losses + self.config.exit_weight / len(exits) * self._over_widths(shallow, batch)
            if self.config.alignment:
                losses = losses + self.config.alignment * self._divergence(shallow, last) * batch.weights
        return losses

    def _over_widths(self, reps: PairVectors, batch: PairBatch) -> torch.Tensor:
        """The weighted mean of the losses at the full width and at all others."""
        check_widths(self.config.widths, reps.documents.own.shape[-1])
        weights = self.config.width_weights or (1.0,) * len(self.config.widths)
        losses = self.inner(reps, batch)
        for width, weight in zip(self.config.widths, weights, strict=True):
            losses = losses + weight * self.inner(_truncated(reps, width), batch)
        return losses / (1 + sum(weights))

    def _divergence(self, shallow: PairVectors, last: PairVectors) -> torch.Tensor:
        """How far the exit's vectors are from the last layer's, a mean over the texts of each pair, fp32 [B]."""
        import torch

        temperature = self.config.alignment_temperature
        pairs = len(shallow.anchors.own)
        documents = slice(shallow.documents.first, shallow.documents.first + len(shallow.documents.own))
        is_real = shallow.documents.weights[documents] > 0
        first_pair = shallow.anchors.owners[shallow.anchors.first]
        owners = torch.cat(
            [torch.arange(pairs, device=is_real.device), shallow.documents.owners[documents][is_real] - first_pair]
        )
        exits, targets = (torch.cat([reps.anchors.own, reps.documents.own[is_real]]) / temperature for reps in (shallow, last))
        each = torch.nn.functional.kl_div(exits.log_softmax(dim=-1), targets.detach().softmax(dim=-1), reduction="none").sum(
            dim=-1
        )
        sums = each.new_zeros(pairs).index_add(0, owners, each)
        return sums / torch.bincount(owners, minlength=pairs) * temperature


def check_widths(widths: tuple[int, ...], full: float) -> None:
    """Checks that every width is a part of the model's.

    Raises:
        ConfigError: one is as wide as `full`, or wider.
    """
    if wrong := [width for width in widths if width >= full]:
        raise ConfigError(
            f"the model's vectors have {full} values, so that a width of {wrong[0]} is not a part of them.",
            "embed.nested.widths",
        )


def _at(reps: PairVectors, exit_number: int) -> PairVectors:
    """The vectors of one exit."""
    return _map(reps, lambda vectors: vectors[:, exit_number])


def _truncated(reps: PairVectors, width: int) -> PairVectors:
    """Unit vectors of the first `width` values."""
    import torch

    return _map(reps, lambda vectors: torch.nn.functional.normalize(vectors[..., :width], dim=-1))


def _map(reps: PairVectors, function: Any) -> PairVectors:
    def side(vectors: Gathered) -> Gathered:
        own = function(vectors.own)
        return vectors._replace(own=own, all=own if vectors.all is vectors.own else function(vectors.all))

    return PairVectors(side(reps.anchors), side(reps.documents))
