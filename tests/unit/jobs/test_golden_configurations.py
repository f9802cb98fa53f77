"""Every example configuration, resolved: a changed default is a visible change in review.

`UPDATE_GOLDEN=1` writes the files anew.
"""

import os
from pathlib import Path

import pytest

from ray_jobs.config.load import load, to_yaml

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "ray_jobs" / "conf").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_resolves_to_its_golden_file(example: Path) -> None:
    config = load(str(example), ["source_model=MODEL"])
    golden = ROOT / "tests" / "golden" / "configurations" / example.name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True, parents=True)
        golden.write_text(to_yaml(config))
    assert to_yaml(config) == golden.read_text(), "UPDATE_GOLDEN=1 writes the file anew"
