"""What a check of an artefact finds, for whoever reads `scion verify`."""

from dataclasses import dataclass

_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The outcome of a check."""

    check: str
    detail: str
    """What was compared, or what is wrong."""
    failures: tuple[str, ...] = ()
    """Rows, ids or files that fail, as many as a reader can use; none if all is well."""

    @classmethod
    def from_failures(cls, check: str, said: str, failures: list[str]) -> "CheckResult":
        """One that names the first failures, and how many more there are."""
        more = [f"and {len(failures) - _LISTED:,} more"] if len(failures) > _LISTED else []
        return cls(check=check, detail=said, failures=(*failures[:_LISTED], *more))

    @property
    def is_ok(self) -> bool:
        return not self.failures
