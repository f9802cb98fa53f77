"""What `scion embed` needs of its inputs: scores of a teacher, hard negatives, and the model to train."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.artifacts import storage
from data_pipeline.errors import DataError
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import embed
from ray_jobs.config.embedders import EmbedConfig
from trainer.objectives.info_nce import InfoNce


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


@pytest.mark.parametrize(
    ("settings", "name", "least"),
    [
        ({"mixed_pairs": 2}, "mixed_pairs", 2),
        ({"mixed_list": True}, "mixed_list", 2),
        ({"hardness": 5.0, "hardness_of": "hard"}, "hardness_of", 1),
    ],
)
def test_losses_on_hard_negatives_need_them(settings: dict[str, Any], name: str, least: int) -> None:
    """They trained as if the setting was not there."""
    given = {"info_nce": InfoNce(**settings)}
    config = EmbedConfig(objectives=replace(EmbedConfig().objectives, **given))
    few, many = (Pairs(ids=["1"], anchors=["a"], positives=["b"], negatives=[["c"] * n]) for n in (least - 1, least))
    embed._check_negatives(config, many)
    with pytest.raises(DataError, match=rf"{name} needs {least} negatives of a pair, and no pair has more than {least - 1}"):
        embed._check_negatives(config, few)


def test_a_model_of_the_hub_is_copied_to_where_all_nodes_read(source_folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: {"org/model": source_folder}[name])
    uri = embed._given_model("org/model@v1", str(tmp_path / "hub"))
    assert uri == f"{tmp_path}/hub/org--model@v1"
    assert sorted(storage.files(uri)) == sorted(storage.files(source_folder))
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert embed._given_model("org/model@v1", str(tmp_path / "hub")) == uri
    assert embed._given_model(source_folder, "") == source_folder
