"""One encode path: equal in any batch, and equal to sentence-transformers."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.pairs.batch import batches_by_length
from data_pipeline.pairs.text_form import TEMPLATES
from tests.conftest import FAMILIES, tiny_decoder, tiny_model
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models import loading


@pytest.fixture(params=["mean", "cls", "lasttoken"])
def model_folder(request, english, tmp_path) -> str:
    tokenizer = FAMILIES["wordpiece"](english)
    spec = EmbedderSpec(pooling=request.param, max_length=24, dimensions=(8,))
    Embedder(tiny_model(tokenizer).bert, tokenizer, spec).save(str(tmp_path))
    return str(tmp_path)


def test_a_text_has_the_same_vector_in_any_batch(model_folder, english) -> None:
    embedder = Embedder.load(model_folder)
    together = embedder.encode(english)
    alone = np.concatenate([embedder.encode([text]) for text in english[:40]])
    assert np.abs(together[:40] - alone).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_sentence_transformers_reads_the_folder_and_agrees(model_folder, english) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(model_folder, device="cpu").encode(english, batch_size=7)
    assert np.abs(theirs - Embedder.load(model_folder).encode(english)).max() < 1e-5


def test_a_truncated_vector_is_normalised_again(model_folder, english) -> None:
    embedder = Embedder.load(model_folder)
    whole, cut = embedder.encode(english[:5]), embedder.encode(english[:5], dimensions=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert np.abs(cut - expected).max() < 1e-5
    with pytest.raises(ConfigError, match="no 9 dimensions"):
        embedder.encode(english[:1], dimensions=9)


def test_a_long_text_keeps_its_closing_token(model_folder) -> None:
    embedder = Embedder.load(model_folder)
    ids = embedder.tokenize(["click the button " * 50])[0]
    assert len(ids) == 24
    assert ids[-1] == embedder.tokenizer.sep_token_id
    assert ids == embedder.tokenizer("click the button " * 50, truncation=True, max_length=24).input_ids


def test_a_plain_model_folder_pools_by_the_mean(source_folder, english) -> None:
    embedder = Embedder.load(source_folder)
    assert embedder.spec.pooling == "mean"
    assert embedder.encode(english[:2]).shape == (2, 32)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60))
def test_at_most_half_of_a_forward_pass_is_padding(lengths: list[int]) -> None:
    batches = list(batches_by_length([[7] * length for length in lengths], 4096))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[row] for row in batch) * len(batch)
        assert padded <= 2 * sum(lengths[row] for row in batch)
        assert padded <= 4096 or len(batch) == 1


def test_an_exit_is_a_model_of_fewer_layers(model_folder, english, tmp_path) -> None:
    embedder = Embedder.load(model_folder)
    embedder.spec = replace(embedder.spec, layers=(1,))
    embedder.save(str(tmp_path))
    again = Embedder.load(str(tmp_path))
    assert again.spec.layers == (1,)
    shallow = again.encode(english[:5], layers=1)
    assert shallow.shape == again.encode(english[:5]).shape
    assert np.abs(shallow - again.encode(english[:5])).max() > 1e-3
    assert np.array_equal(shallow, embedder.encode(english[:5], layers=1))
    assert np.allclose(np.linalg.norm(again.encode(english[:5], dimensions=8, layers=1), axis=1), 1, atol=1e-5)
    with pytest.raises(ConfigError, match=r"no exit behind 2 layers. Ask for one of \(1,\)"):
        again.encode(english[:5], layers=2)


def test_a_hub_name_is_fetched_and_a_bad_one_explained(model_folder, english, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: {"org/model": model_folder}[name])
    assert np.array_equal(Embedder.load("org/model").encode(english[:3]), Embedder.load(model_folder).encode(english[:3]))
    with pytest.raises(ModelError, match="neither a folder nor a model that the hub gives"):
        Embedder.load("org/other")
    with pytest.raises(ModelError, match="there is no such folder"):
        Embedder.load("./org/other")


def test_a_model_at_a_uri_is_read(model_folder, english) -> None:
    with storage.local_output("memory://test-embedder") as folder:
        Embedder.load(model_folder).save(folder)
    assert np.array_equal(
        Embedder.load("memory://test-embedder").encode(english[:3]), Embedder.load(model_folder).encode(english[:3])
    )


def test_an_unknown_pooling_is_rejected(model_folder) -> None:
    path = f"{model_folder}/embed.json"
    with open(path) as file:
        spec = json.load(file)
    with open(path, "w") as file:
        json.dump(spec | {"pooling": "median"}, file)
    with pytest.raises(ModelError, match="median"):
        Embedder.load(model_folder)


def test_a_folder_without_a_model_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        loading.encoder(str(tmp_path))


@pytest.fixture
def decoder_folder(english, tmp_path) -> str:
    tokenizer = FAMILIES["byte_level"](english)
    tiny_decoder(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(("template", "pooling"), [("echo", "mean"), ("prompteol", "last")])
def test_a_language_model_embeds_by_the_name_of_a_template(decoder_folder, english, template: str, pooling: str) -> None:
    """A name that was taken as the template itself gave every text the same vector."""
    spec = EmbedderSpec(template=template, pooling=pooling, max_length=64)
    named = Embedder.load(decoder_folder, spec=spec)
    written = Embedder.load(decoder_folder, spec=replace(spec, template=TEMPLATES[template]))
    vectors = named.encode(english[:2])
    assert np.array_equal(vectors, written.encode(english[:2]))
    assert vectors[0] @ vectors[1] < 0.999


@pytest.mark.parametrize("template", ["no text", "", "{text} {text} {text}"])
def test_a_template_without_the_text_is_refused_in_python_too(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        EmbedderSpec(template=template)


@pytest.mark.parametrize(("pooling", "reason"), [("first", "is causal"), ("latentattention", "no latent attention")])
def test_a_pooling_that_the_model_cannot_have_is_refused(decoder_folder, pooling: str, reason: str) -> None:
    whole = Embedder.load(decoder_folder)
    with pytest.raises(ConfigError, match=reason):
        Embedder(whole.model, whole.tokenizer, EmbedderSpec(pooling=pooling))


def test_an_embedder_can_be_copied(model_folder, english) -> None:
    embedder = deepcopy(Embedder.load(model_folder))
    assert np.array_equal(embedder.encode(english[:2]), Embedder.load(model_folder).encode(english[:2]))
