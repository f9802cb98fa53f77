"""YAML as people write it today: `true` and `false` are the only booleans.

PyYAML follows YAML 1.1, in which `no`, the tag of Norwegian, is false, and so are `off` and `n`.
"""

from collections.abc import Hashable
from typing import Any, ClassVar

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, and no key twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in found if not (tag.endswith(":bool") and first in "yYnNoO")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} occurs twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def parse(text: str) -> Any:
    """What a YAML document says.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def parse_value(text: str) -> Any:
    """What stands behind `key=` on a command line: YAML, or the text itself where it is none, e.g. `*.parquet`."""
    try:
        return parse(text)
    except yaml.YAMLError:
        return text
