"""Random typos in the keys of documents."""

import random
import string
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from cluster.validate.documents import Path, at

FREE = (
    "labels", "annotations", "matchLabels", "nodeSelector", "data", "stringData", "clusterSelector", "headServiceAnnotations",
    "selector", "spec.metadata", "group.resources",
)  # fmt: skip
"""Maps whose keys are anybody's: a typo there is another valid key."""


def keys(content: Any, free: Sequence[str] = FREE, path: Path = ()) -> Iterator[Path]:
    """The places of all keys, but for those in maps that are `free`."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            if _name(content, key, value, path) not in free:
                yield from keys(value, free, (*path, key))
    elif isinstance(content, list):
        for place, one in enumerate(content):
            yield from keys(one, free, (*path, place))


def _name(content: dict[str, Any], key: str, value: Any, path: Path) -> str:
    """The key of a map, with what is around it where that tells two kinds of maps apart."""
    if key == "metadata" and path[-1:] in (("spec",), ("jobTemplate",)):
        return "spec.metadata"
    if key == "resources" and "groupName" in content:
        return "group.resources"
    return "selector.of.pods" if key == "selector" and isinstance(value, dict) and "matchLabels" in value else key


def typo(word: str, draw: random.Random) -> str:
    """The word with one letter left out, doubled, replaced, or changed with its neighbour; never the word itself."""
    while True:
        place, letter = draw.randrange(len(word)), draw.choice(string.ascii_lowercase)
        kind = draw.choice(("drop", "double", "replace", "swap"))
        pieces = {
            "drop": word[:place] + word[place + 1 :],
            "double": word[: place + 1] + word[place:],
            "replace": word[:place] + letter + word[place + 1 :],
            "swap": word[:place] + word[place : place + 2][::-1] + word[place + 2 :],
        }
        if pieces[kind] not in ("", word):
            return pieces[kind]


def with_typo(document: Any, draw: random.Random, free: Sequence[str] = FREE) -> tuple[Any, Path, str] | None:
    """A copy of the document with a typo in one key, the key's place and the typo; None if the typo is a key beside it."""
    path = draw.choice(list(keys(document, free)))
    wrong = typo(str(path[-1]), draw)
    changed = deepcopy(document)
    section = at(changed, path[:-1])
    if wrong in section:
        return None
    items = [(wrong if key == path[-1] else key, value) for key, value in section.items()]
    section.clear()
    section.update(items)
    return changed, path, wrong
