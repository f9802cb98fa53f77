"""The model card, read by the hub's own library."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ray_jobs import model_card
from ray_jobs.model_card import Card
from trainer.embedder_spec import EmbedderSpec, write_spec

SCORES = {"accuracy_at_1": 0.51234567, "mrr_at_10": 0.625}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of an embedder, without its weights."""
    home = tmp_path / "embed"
    home.mkdir()
    spec = EmbedderSpec(max_length=24, dimensions=(64, 32), layers=(3,), prompts={"query": "ask: "})
    write_spec(spec, str(home), 128)
    return home


def card(*parents: str, **others: object) -> Card:
    defaults = {
        "title": "mine",
        "made": "Made by a test.",
        "parents": parents,
        "retrieval": {"forward": SCORES, "backward": SCORES},
    }
    return Card(**defaults | {"test_pairs": "a/test.parquet", "languages": ("el", "und", "el", "de")} | others)  # type: ignore[arg-type]


def test_the_hub_reads_languages_model_and_scores(folder: Path) -> None:
    model_card.write(str(folder), card("org/model@v1", str(folder)))
    data = ModelCard.load(folder / "README.md").data
    assert data.language == ["de", "el"]
    assert data.base_model == ["org/model"]
    assert (data.library_name, data.pipeline_tag, data.license) == ("sentence-transformers", "sentence-similarity", None)
    assert {(one.metric_type, one.metric_value, one.dataset_name) for one in data.eval_results} == {
        (f"{name}_{way}", value, "test.parquet")
        for way in ("forward", "backward")
        for name, value in (("accuracy_at_1", 0.51235), ("mrr_at_10", 0.625))
    }


def test_the_text_says_what_the_folder_can_do(folder: Path) -> None:
    model_card.write(str(folder), card("org/model", data=("pairs.parquet",), papers=("A paper",)))
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        "| widths beside the full one | 64, 32 |",
        "| exits behind layers | 3 |",
        "`query`: `ask: `",
        "- data: `pairs.parquet`",
    ):
        assert part in text
    assert 'model.encode(["a text"], prompt_name="query")' in text
    assert "licence: the model that it was made from names none" in text


def test_the_licence_is_that_of_the_source_model(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model\n", encoding="utf-8")
    model_card.write(str(folder), card(str(source)))
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.license == "apache-2.0"
    assert "licence: apache-2.0, that of the model" in loaded.text


def test_an_embedder_without_scores_has_a_card(folder: Path) -> None:
    model_card.write(str(folder), card("org/model", retrieval={}, languages=()))
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.eval_results is None
    assert "Evaluation" not in loaded.text
