"""What a check of an artefact finds, for whoever reads `scion verify`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of a check."""

    check: str
    said: str
    """What was compared, or what is wrong."""
    failures: tuple[str, ...] = ()
    """Rows, ids or files that fail, as many as a reader can use; none if all is well."""

    @property
    def ok(self) -> bool:
        return not self.failures
