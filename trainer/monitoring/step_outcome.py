"""What a step came to: made by the engine, read by the log and the guards."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """The same on every rank, except `seconds`."""

    loss: float
    """Mean over the step's targets."""
    norm: float | None
    """Norm of the gradient, before clipping."""
    is_applied: bool
    """Whether the weights were updated: not where loss or gradient was not finite."""
    losses: list[float]
    """Mean over the targets of each stream; NaN for a stream without targets."""
    targets: list[int]
    """Number of targets of each stream."""
    padding: float
    """Share of the tokens that are padding."""
    tokens: int
    """Tokens without padding."""
    attention_pairs: int
    """Pairs of tokens that attend to each other."""
    requests: int
    """The `Request` flags of the first rank."""
    ranks_written: int
    """Ranks that have written their part of the checkpoint under way."""
    own_seconds: list[float]
    """Of each rank, the seconds of the step before that it needed by itself."""
    seconds: dict[str, float]
    """Where the time of this rank went."""
