"""The lines that the mutants of `make faults` break still exist: otherwise a mutant would break nothing."""

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.rig import ROOT


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_line_that_a_mutant_breaks_exists_once(name: str) -> None:
    broken = MUTANTS[name]
    assert (ROOT / broken.path).read_text().count(broken.right) == 1
    assert broken.wrong != broken.right
