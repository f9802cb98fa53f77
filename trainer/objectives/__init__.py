"""Losses: from representations to one loss per target. The table of objectives is here; the contract is in `objective`.

To add a loss: add its module, an entry here, and a test of its own claim. The settings of an entry that needs vectors are the
section `embed.objectives.NAME`.
"""

from data_pipeline.table import Row
from trainer.objectives.embedding_distillation import EmbeddingDistillation
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.language_modeling import LanguageModeling
from trainer.objectives.objective import Objective
from trainer.objectives.score_distillation import Dse, MarginMse, ScoreKl

Entry = Row[Objective]

OBJECTIVES: dict[str, Entry] = {
    "dse": Entry(Dse, "Barkan et al., AAAI 2020 (arXiv:1908.05161)"),
    "embedding_distillation": Entry(EmbeddingDistillation, "Reimers and Gurevych, EMNLP 2020 (arXiv:2004.09813)"),
    "info_nce": Entry(InfoNce, "van den Oord et al., 2018 (arXiv:1807.03748)"),
    "language_modeling": Entry(LanguageModeling, "Devlin et al., NAACL 2019 (arXiv:1810.04805)"),
    "margin_mse": Entry(MarginMse, "Hofstätter et al., 2020 (arXiv:2010.02666)"),
    "score_kl": Entry(ScoreKl, "Hinton et al., 2015 (arXiv:1503.02531)"),
}
