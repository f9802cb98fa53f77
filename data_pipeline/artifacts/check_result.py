"""The result of a check of an artefact, as `scion verify` prints it."""

from dataclasses import dataclass

_MAX_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The outcome of a check."""

    check: str
    detail: str
    """What was compared, or what is wrong."""
    failures: tuple[str, ...] = ()
    """Rows, ids or files that fail, as many as a reader can use; empty if the check passes."""

    @classmethod
    def from_failures(cls, check: str, detail: str, failures: list[str]) -> "CheckResult":
        """A result that lists the first failures and counts the rest."""
        rest = [f"and {len(failures) - _MAX_LISTED:,} more"] if len(failures) > _MAX_LISTED else []
        return cls(check=check, detail=detail, failures=(*failures[:_MAX_LISTED], *rest))

    @property
    def is_ok(self) -> bool:
        return not self.failures
