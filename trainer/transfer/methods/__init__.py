"""The table of initialisers. Adding a paper: its module here, one row, one test for its own claim."""

from dataclasses import dataclass
from typing import Any

from trainer.transfer.methods import aligned, focus, fvt, mean, random, wechsel
from trainer.transfer.problem import Method


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: the settings, the function and where it was published."""

    config: type[Any]
    rows: Method
    paper: str


METHODS: dict[str, Entry] = {
    "random": Entry(random.RandomConfig, random.rows, "baseline: normal with the moments of the old rows"),
    "mean": Entry(mean.MeanConfig, mean.rows, "baseline: the mean of the old rows"),
    "fvt": Entry(fvt.FvtConfig, fvt.rows, "Gee et al., EMNLP 2022 (Fast Vocabulary Transfer)"),
    "wechsel": Entry(wechsel.WechselConfig, wechsel.rows, "Minixhofer et al., NAACL 2022 (arXiv:2112.06598)"),
    "focus": Entry(focus.FocusConfig, focus.rows, "Dobler and de Melo, EMNLP 2023 (arXiv:2305.14481)"),
    "aligned": Entry(aligned.AlignedConfig, aligned.rows, "after Remy et al., COLM 2024 (arXiv:2408.04303), by Dice"),
}
