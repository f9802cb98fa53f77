"""`rayStartParams`: options of `ray start`, without the dashes in front."""

from collections.abc import Iterator
from functools import cache

from cluster.validate.documents import Document, Finding, mapped
from cluster.validate.schema import advice

_EARLIER = (
    "autoscaler-config", "dashboard-grpc-port", "gcs-server-port", "huge-pages", "log-color", "log-style", "raylet-socket-name",
    "plasma-store-socket-name", "ray-debugger-external", "redis-max-memory", "verbose", "worker-port",
)  # fmt: skip
"""Options of earlier versions of Ray, or of all commands of `ray`."""


def check(document: Document) -> Iterator[Finding]:
    """Findings on names and values of the options."""
    known = options()
    for path, group in document.groups():
        for name, value in mapped(group.get("rayStartParams")).items():
            where = (*path, "rayStartParams", name)
            if name not in known and name not in _EARLIER:
                yield document.found(where, f"`ray start` has no option --{name}.", advice(name, known))
            elif known.get(name) == "integer" and not _is_whole(value):
                yield document.found(where, f"{value!r} is not a whole number.", 'Write it in quotes, as "8".')
            elif known.get(name) == "boolean" and str(value).lower() not in ("true", "false"):
                yield document.found(where, f"{value!r} is neither true nor false.", 'Write "true" or "false".')


@cache
def options() -> dict[str, str]:
    """The options of the installed Ray, each with the name of its type as click has it."""
    from ray.scripts.scripts import start

    return {name.removeprefix("--"): one.type.name for one in start.params for name in one.opts if name.startswith("--")}


def _is_whole(value: object) -> bool:
    """Whether the text is a whole number; a value from the environment, such as $MY_CPU_LIMIT, may be one."""
    return isinstance(value, str) and (value.strip("\"'").isdigit() or "$" in value)
