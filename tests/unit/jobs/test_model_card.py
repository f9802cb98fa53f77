"""The model card, read by the hub's own library."""

from dataclasses import replace
from pathlib import Path

import fsspec
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


@pytest.mark.parametrize(
    "content",
    [
        b"---\nlicense: [a\nfoo: : :\n---\n",
        b"---\n- a\n---\n",
        b"---\nlicense: \xe8\n",
        b"---\nmodel-index:\n- name: x\n  results: 3\n---\n",
        b"---\neval_results: 3\n---\n",
    ],
)
def test_a_source_model_s_card_of_any_content_ends_no_training(content: bytes, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_bytes(content)
    model_card.write(str(folder), card(str(source)))
    assert ModelCard.load(folder / "README.md").data.license is None


def test_models_and_data_on_storage_are_no_hub_names_and_keep_their_passwords(folder: Path) -> None:
    with fsspec.open("memory://bucket/model/README.md", "w") as file:
        file.write("---\nlicense: mit\n---\n")
    parents = ("memory://bucket/model", "ftp://me:secret@host/model")
    model_card.write(str(folder), replace(card(*parents[:1], data=("https://me:secret@host/x.jsonl",)), made=parents[1]))
    loaded = ModelCard.load(folder / "README.md")
    assert (loaded.data.base_model, loaded.data.license) == (None, "mit")
    assert "secret" not in loaded.content
    assert "https://me:***@host/x.jsonl" in loaded.text


def test_latent_attention_is_no_model_of_sentence_transformers(folder: Path) -> None:
    spec = EmbedderSpec(pooling="latentattention", prompts={"query": "Instruct: a | b\nQuery: "})
    write_spec(spec, str(folder), 128)
    model_card.write(str(folder), card("org/model"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "from sentence_transformers" not in text
    assert "| prompts | `query`: `Instruct: a \\| b\\nQuery: ` |\n" in text


def test_an_embedder_without_scores_has_a_card(folder: Path) -> None:
    model_card.write(str(folder), card("org/model", retrieval={}, languages=()))
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.eval_results is None
    assert "Evaluation" not in loaded.text
