"""A YAML loader that refuses repeated keys, of which PyYAML would keep the last one without a word."""

from collections.abc import Hashable

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader; ConstructorError for a key that occurs twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} occurs twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))
