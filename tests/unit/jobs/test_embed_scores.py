"""Which scores of a teacher the losses need."""

import math

import pytest

from data_pipeline.errors import DataError
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import embed
from ray_jobs.config.embedders import EmbedConfig


def pairs(positive: float, negative: float) -> Pairs:
    return Pairs(
        ids=["1"], anchors=["a"], positives=["b"], negatives=[["c"]], positive_scores=[positive], negative_scores=[[negative]]
    )


def test_dse_follows_the_scores_of_positives_alone() -> None:
    embed._check_scores(EmbedConfig(objective="info_nce+dse"), pairs(1.0, math.nan))
    for objective, positive in (("dse+score_kl", 1.0), ("margin_mse", 1.0), ("dse", math.nan)):
        with pytest.raises(DataError, match="follows a teacher's scores, and no row has negative_scores"):
            embed._check_scores(EmbedConfig(objective=objective), pairs(positive, math.nan))
        embed._check_scores(EmbedConfig(objective=objective), pairs(positive, 0.5))
