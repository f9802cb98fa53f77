"""What the ranks of a step add up in one all-reduce, as a record."""

from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from trainer.tasks.task import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Of one rank and its batches, or summed over all ranks."""

    requests: int
    """`Request` flags; the first rank alone raises them."""
    ranks_written: int
    """Ranks that have written their part of the checkpoint under way."""
    tokens: int
    """Tokens without padding."""
    attention_pairs: int
    """Pairs of those tokens that attend to each other."""
    padded_tokens: int
    """Tokens with padding."""
    own_seconds: list[float]
    """One entry a rank: the seconds of its last step that it needed by itself."""
    targets: list[int]
    """Targets of each stream."""

    @classmethod
    def of(cls, batches: list[Batch], streams: int, requests: int, is_written: bool, own_seconds: float) -> "StepTotals":
        """What this rank contributes."""
        seconds = [0.0] * dist.get_world_size()
        seconds[dist.get_rank()] = own_seconds
        targets = sum((batch.counts(streams) for batch in batches), torch.zeros(streams, dtype=torch.float64))
        return cls(
            requests=requests,
            ranks_written=int(is_written),
            tokens=sum(batch.tokens for batch in batches),
            attention_pairs=sum(batch.attention_pairs for batch in batches),
            padded_tokens=sum(batch.size for batch in batches),
            own_seconds=seconds,
            targets=[int(count) for count in targets.tolist()],
        )

    def over_ranks(self, device: torch.device) -> "StepTotals":
        """The sums; every rank calls it. float64 holds integers exactly up to 2^53."""
        *counts, seconds, targets = astuple(self)
        sums = torch.tensor([*counts, *seconds, *targets], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        values, edge = sums.tolist(), len(counts) + len(seconds)
        requests, written, tokens, pairs, padded = (int(value) for value in values[: len(counts)])
        return StepTotals(
            requests=requests,
            ranks_written=written,
            tokens=tokens,
            attention_pairs=pairs,
            padded_tokens=padded,
            own_seconds=values[len(counts) : edge],
            targets=[int(value) for value in values[edge:]],
        )
