"""How often a run reads its text, in words."""

import pytest

from ray_jobs.pretrain import describe_passes


@pytest.mark.parametrize(
    ("passes", "steps", "line"),
    [
        ({"tr": 0.052}, 12, "12 steps read the text 0.052 times"),
        ({"tr": 3537.0}, 10_000, "10,000 steps read the text 3,537 times; 3 would read it once"),
        ({"el": 1.26, "tr": 14.3, "ja": 2.0}, 1_000, "1,000 steps read the text 1.3 (el) to 14 times (tr)"),
        ({"el": 2.0, "tr": 80.0}, 40, "40 steps read the text 2 (el) to 80 times (tr); 1 would read it once"),
    ],
)
def test_a_line_says_how_often_the_text_is_read(passes: dict[str, float], steps: int, line: str) -> None:
    assert describe_passes(passes, steps) == line
