"""Merging models: one method a file; the table is here, the contract in `merge`.

`embedders` reads, checks and writes the models. The settings of an entry are the section `merge.methods.NAME`.
"""

from __future__ import annotations

from data_pipeline.table import Row
from trainer.merging.greedy_soup import GreedySoup
from trainer.merging.lm_cocktail import LmCocktail
from trainer.merging.merge import Merge as Merge
from trainer.merging.model_stock import ModelStock
from trainer.merging.self_positioning import SelfPositioning
from trainer.merging.slerp import Slerp
from trainer.merging.task_arithmetic import TaskArithmetic
from trainer.merging.ties import Ties
from trainer.merging.uniform import Uniform

Entry = Row[Merge]

MERGES: dict[str, Entry] = {
    "uniform": Entry(Uniform, "model soup: Wortsman et al., ICML 2022 (arXiv:2203.05482)"),
    "greedy_soup": Entry(GreedySoup, "Wortsman et al., ICML 2022 (arXiv:2203.05482)"),
    "lm_cocktail": Entry(LmCocktail, "Xiao et al., Findings of ACL 2024 (arXiv:2311.13534)"),
    "model_stock": Entry(ModelStock, "Jang et al., ECCV 2024 (arXiv:2403.19522)"),
    "self_positioning": Entry(SelfPositioning, "Li et al., 2024 (arXiv:2410.15035)"),
    "slerp": Entry(Slerp, "Shoemake, SIGGRAPH 1985 (doi:10.1145/325334.325242)"),
    "task_arithmetic": Entry(TaskArithmetic, "Ilharco et al., ICLR 2023 (arXiv:2212.04089)"),
    "ties": Entry(Ties, "Yadav et al., NeurIPS 2023 (arXiv:2306.01708)"),
}
