"""Which models an evaluation compares, and on what, depending on the files of the user."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.artifacts import artifact
from data_pipeline.errors import ConfigError, DataError, ModelError
from data_pipeline.pairs import graded_pairs
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import evaluate, preflight
from ray_jobs.config.embedders import TEST_SETS, EvaluateConfig
from ray_jobs.config.load import load, with_absolute_paths
from ray_jobs.config.schema import ScionConfig
from tests.integration.conftest import write_rows
from trainer.evaluation import bootstrap
from trainer.evaluation.measured import Measured
from trainer.evaluation.probes import PROBES

BASE = ["source_model", "random_untrained", "random_pretrained", "transferred_untrained", "transferred_pretrained"]
WITH_EMBEDDERS = [
    "source_model",
    "random_untrained",
    "random_pretrained",
    "random_trained",
    "transferred_untrained",
    "transferred_pretrained",
    "transferred_trained",
    "merged",
]


@pytest.mark.parametrize(
    ("given", "pipeline", "alone"),
    [
        ("pairs test_pairs", WITH_EMBEDDERS, WITH_EMBEDDERS),
        ("test_pairs", BASE, WITH_EMBEDDERS),
        ("", BASE, BASE),
        ("sts", BASE, WITH_EMBEDDERS),
    ],
)
def test_the_models_that_are_compared(
    given: str, pipeline: list[str], alone: list[str], tmp_path: Path, source_folder: str, monkeypatch
) -> None:
    """`scion evaluate` scores an embedder that was made of text wherever there are pairs to score it by."""
    write_rows(tmp_path / "text.parquet", [{"text": "Πατήστε το κουμπί."}])
    lines = [f"text: {tmp_path}/text.parquet", f"source_model: {source_folder}", f"output: {tmp_path}/run"]
    for name in given.replace("sts", "").split():
        write_rows(tmp_path / f"{name}.parquet", [{"anchor": "a", "positive": f"the {name}"}])
        lines.append(f"{name}: {tmp_path}/{name}.parquet")
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    config = load(str(tmp_path / "c.yaml"), ["evaluate.sts=sts.jsonl"] if given == "sts" else [])
    monkeypatch.setattr(artifact, "find", lambda plan: plan)
    assert sorted(evaluate.pipeline_models(config)) == sorted(pipeline)
    assert sorted(evaluate.finished_models(config)) == sorted(alone)


def given_model(tmp_path: Path, source_folder: str, **evaluated: object) -> ScionConfig:
    """A configuration of `scion embed` alone: no text and no source model."""
    write_rows(tmp_path / "pairs.parquet", [{"anchor": "a", "positive": "b"}])
    files = dict.fromkeys(("pairs", "test_pairs"), f"{tmp_path}/pairs.parquet")
    values = {"output": f"{tmp_path}/run", "embed": {"model": source_folder}, "evaluate": evaluated} | files
    return load(None, [], "evaluate", values=values)


def test_an_embedder_of_a_given_model_is_compared_with_it(tmp_path: Path, source_folder: str, monkeypatch) -> None:
    config = given_model(tmp_path, source_folder, models={"peer": source_folder})
    preflight.check(config, "evaluate")
    assert list(evaluate.finished_models(config)) == ["source_model", "peer"]
    monkeypatch.setattr(artifact, "find", lambda plan: plan)
    models = evaluate.finished_models(config)
    assert list(models) == ["source_model", "model_trained", "peer"]
    assert models["source_model"] == models["peer"] == source_folder
    with_text = replace(config, text="t.jsonl", source_model="another")
    assert evaluate.finished_models(with_text)["source_model"] == source_folder


def test_any_models_are_compared_without_a_run(tmp_path: Path, source_folder: str) -> None:
    """Relative folders are found by workers in other directories."""
    models = {"a": source_folder, "b": "org/on-a-hub"}
    config = load(None, [], "evaluate", values={"output": f"{tmp_path}/run", "evaluate": {"models": models}})
    assert evaluate.finished_models(config) == models
    with pytest.raises(ModelError, match=r"evaluate.models.b"):
        preflight.check(config, "evaluate")


@pytest.mark.parametrize("name", ["merged", "source_model", "random_trained", "a/b"])
def test_the_names_of_other_models_are_their_own(name: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate.models"):
        EvaluateConfig(models={name: "folder"})


def test_the_line_for_the_user_names_its_model() -> None:
    """Of a merge it gave the figures of the source model."""
    ways = {way: {"accuracy_at_1": 0.5} for way in ("forward", "backward")}
    base = {"source_model": ways}
    for models, label in (
        (base | {"merged": ways}, "merged"),
        (base | {"transferred_trained": ways, "merged": ways, "e5": ways}, "transferred, trained"),
        (base | {"e5": ways}, "e5"),
        (base, "source model"),
    ):
        line = evaluate._last_figures({"retrieval": models, "bits_per_byte": {}})
        assert line == f"{label}: accuracy@1 0.500 anchor → positive, 0.500 positive → anchor"
    ranked = {"ranking": {"merged": {"forward": {"ndcg_at_10": 0.25}}}, "bits_per_byte": {"random_pretrained": 1.5}}
    assert evaluate._last_figures(ranked) == ("merged: nDCG@10 0.250 anchor → positive, 1.500 bits per byte of held-out text")


@pytest.fixture
def config(tmp_path: Path, source_folder: str) -> ScionConfig:
    """Without test pairs, with graded pairs."""
    write_rows(tmp_path / "text.parquet", [{"text": "Πατήστε το κουμπί."}])
    write_rows(tmp_path / "sts.parquet", [{"sentence1": "a", "sentence2": "b", "score": score} for score in range(4)])
    values = {"text": f"{tmp_path}/text.parquet", "source_model": source_folder, "output": f"{tmp_path}/run"}
    return load(None, [], values=values | {"evaluate": {"sts": f"{tmp_path}/sts.parquet"}})


def test_graded_pairs_change_the_artefact_only_where_they_are_given(config: ScionConfig) -> None:
    without = replace(config, evaluate=replace(config.evaluate, sts=None))
    assert "evaluate.sts" not in evaluate.spec(without, {}).inputs
    assert set(evaluate.spec(config, {}).inputs) == {"evaluate.sts"}
    assert evaluate.spec(without, {}).config == evaluate.spec(config, {}).config == {}


def test_graded_pairs_are_scored_without_test_pairs(config: ScionConfig, tmp_path: Path) -> None:
    graded = graded_pairs.load(config.evaluate.sts, str(tmp_path / "cache"), key="evaluate.sts")
    scores = evaluate.score._function(
        config.source_model, Pairs(ids=[], anchors=[], positives=[], negatives=[]), {}, {"sts": graded}
    )
    assert set(scores) == {"sts"}
    assert scores["sts"].scores["pairs"] == 4


def test_a_missing_file_of_graded_pairs_is_found_at_the_start(config: ScionConfig) -> None:
    missing = replace(config, evaluate=replace(config.evaluate, sts="nowhere.jsonl"))
    with pytest.raises(DataError, match="no such file") as error:
        preflight.check(missing, "evaluate")
    assert "evaluate.sts=" in str(error.value)
    with pytest.raises(ConfigError, match="empty"):
        replace(config.evaluate, sts="")


def test_the_path_of_graded_pairs_is_made_absolute(
    config: ScionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = replace(config, evaluate=replace(config.evaluate, sts="sts.parquet"))
    assert with_absolute_paths(relative).evaluate.sts == f"{tmp_path}/sts.parquet"


def test_each_probe_has_its_key() -> None:
    assert tuple(PROBES) == TEST_SETS


def test_a_missing_library_is_found_at_the_start(config: ScionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "topics.parquet", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    probed = replace(config, evaluate=replace(config.evaluate, clustering=f"{tmp_path}/topics.parquet"))
    preflight.check(probed, "evaluate")
    monkeypatch.setattr(preflight, "is_installed", lambda name: name != "sklearn")
    with pytest.raises(ConfigError, match="scikit-learn is not installed") as error:
        preflight.check(probed, "evaluate")
    assert "scion-lm[probes]" in str(error.value)


def test_a_wrong_column_is_found_at_the_start(config: ScionConfig, tmp_path: Path) -> None:
    write_rows(tmp_path / "wrong.parquet", [{"sentence1": "a", "sentence2": "b", "similarity": 1.0}])
    wrong = replace(config, evaluate=replace(config.evaluate, sts=f"{tmp_path}/wrong.parquet"))
    with pytest.raises(DataError, match="column score is missing") as error:
        preflight.check(wrong, "evaluate")
    assert "evaluate.sts=" in str(error.value)


def test_each_model_is_compared_with_the_source_model() -> None:
    """On the same samples: the better one is better on each of them. A model that is measured alone differs from none."""
    values = np.random.default_rng(0).random(80)

    def measured(own: np.ndarray) -> dict[str, Measured]:
        scores = Measured(scores={"map": float(own.mean()), "queries": 80}, replicates=bootstrap.means({"map": own}))
        return {"reranking": scores, "isotropy": Measured(scores={"isoscore": 0.5})}

    made = evaluate.collect({"source_model": measured(values), "transferred_trained": measured(values + 0.25)})
    assert set(made["reranking"]) == {"source_model", "transferred_trained"}
    assert set(made["differences"]) == {"reranking"}
    found = made["differences"]["reranking"]["transferred_trained"]["map"]
    assert found["is_significant"]
    assert [found["difference"], *found["interval"]] == pytest.approx([0.25] * 3)
    assert json.loads(json.dumps(made)) == made
    assert "differences" not in evaluate.collect({"source_model": measured(values)})
