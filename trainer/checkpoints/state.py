"""The state that a run needs to resume, as its checkpoints hold it in `state.json`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Skip:
    """Steps [first, last) of the order that the run has skipped, and why."""

    first: int
    last: int
    why: str
    counts: bool = True
    """Toward giving up. False once the settings that the error advises to change were changed."""


@dataclass(slots=True)
class RunState:
    """The same on every rank."""

    next_step: int = 0
    identity: str = ""
    """Hash of the order and of the settings that cannot change: a run does not resume the checkpoint of another run."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The present values of the settings that can change (`changes.adjustable_settings`)."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What was changed and at which step (`changes.adopt_settings`), in order."""
    evaluations: dict[str, Any] = field(default_factory=dict)
    """Step (as text) to bits per byte, or to an embedder's retrieval both ways."""
    lineage: list[str] = field(default_factory=list)
    """The checkpoints that led to this state; also the names of the ledger's segments."""
    skips: list[Skip] = field(default_factory=list)
    """In the order of their steps."""
    recent: list[float] = field(default_factory=list)
    """The window of losses for spike detection."""
    refused: int = 0
    """Consecutive skipped updates."""
    missed: list[str] = field(default_factory=list)
    """Why the saves since the last successful one failed."""

    @property
    def skipped(self) -> tuple[tuple[int, int], ...]:
        """The skipped steps [first, last) of the order."""
        return tuple((skip.first, skip.last) for skip in self.skips)
