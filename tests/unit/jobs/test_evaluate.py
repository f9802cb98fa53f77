"""Which models an evaluation compares, depending on the files of the user."""

from pathlib import Path

import pytest

from data_pipeline.artifacts import artifact
from ray_jobs import evaluate
from ray_jobs.config.load import load
from tests.integration.conftest import write_rows

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
    ],
)
def test_the_models_that_are_compared(
    given: str, pipeline: list[str], alone: list[str], tmp_path: Path, source_folder: str, monkeypatch
) -> None:
    """`scion evaluate` scores an embedder that was made of text wherever there are pairs to score it by."""
    write_rows(tmp_path / "text.parquet", [{"text": "Πατήστε το κουμπί."}])
    lines = [f"text: {tmp_path}/text.parquet", f"source_model: {source_folder}", f"output: {tmp_path}/run"]
    for name in given.split():
        write_rows(tmp_path / f"{name}.parquet", [{"anchor": "a", "positive": f"the {name}"}])
        lines.append(f"{name}: {tmp_path}/{name}.parquet")
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    config = load(str(tmp_path / "c.yaml"), [])
    monkeypatch.setattr(artifact, "find", lambda plan: plan)
    assert sorted(evaluate.pipeline_models(config)) == sorted(pipeline)
    assert sorted(evaluate.finished_models(config)) == sorted(alone)
