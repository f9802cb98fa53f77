"""A row of a table of methods: the class whose fields are the settings, and the paper."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)  # with slots a generic class that is frozen cannot be made
class Row(Generic[T]):
    """A row of a table whose methods follow the protocol T. `ray_jobs/config/tables.py` makes settings of it."""

    config: type[T]
    paper: str
