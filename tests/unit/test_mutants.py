"""The broken copies of `make faults` break what is there: a line that has changed would make the harness look sharp."""

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.rig import ROOT


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_line_that_a_mutant_breaks_is_still_there(name: str) -> None:
    broken = MUTANTS[name]
    assert (ROOT / broken.path).read_text().count(broken.right) == 1
    assert broken.wrong != broken.right
