"""Language tags, which name streams and the folders of their shards."""

import re
from typing import Any

from data_pipeline.errors import DataError

TAG_RULE = "Use letters, digits, `-` and `_`, as in el, pt-BR or zh_Hant."
_TAG = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_MAX_LENGTH = 64


def is_tag(value: Any) -> bool:
    """Whether a value has the form of a language tag: letters and digits in parts joined by `-` or `_`."""
    return isinstance(value, str) and len(value) <= _MAX_LENGTH and _TAG.fullmatch(value) is not None


def check_tag(value: Any, where: str) -> str:
    """Returns the tag if it is valid.

    Raises:
        DataError: it is not, e.g. `../x`, which would leave the folder of the shards.
    """
    if not is_tag(value):
        raise DataError(f"{value!r} is no language tag.", where, TAG_RULE)
    return str(value)
