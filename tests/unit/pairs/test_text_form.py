"""Prompts and templates around a text, against sentence-transformers and against states pooled by hand."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_pipeline.errors import ConfigError
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.shards import tokenize_pairs
from data_pipeline.pairs.text_form import TEMPLATES, TextForm, template_text
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs.config.embedders import EmbedConfig
from tests.conftest import FAMILIES, tiny_decoder, tiny_model, wordpiece
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models.dual_encoder import DualEncoder
from trainer.objectives.objective import Needs
from trainer.tasks.contrastive import ContrastiveTask

PROMPTS = {"query": "Search for: ", "document": "Title: "}
LONG = "click the button and choose a file " * 20


def decoder(english: list[str], spec: EmbedderSpec) -> Embedder:
    tokenizer = FAMILIES["byte_level"](english)
    return Embedder(tiny_decoder(tokenizer, "llama").base_model, tokenizer, spec)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "cls"])
def test_a_prompt_is_that_of_sentence_transformers(english, tmp_path, pooling: str, include_prompt: bool) -> None:
    from sentence_transformers import SentenceTransformer

    tokenizer = wordpiece(english)
    spec = EmbedderSpec(
        pooling=pooling, max_length=24, prompts=PROMPTS, default_prompt_name="document", include_prompt=include_prompt
    )
    Embedder(tiny_model(tokenizer).bert, tokenizer, spec).save(str(tmp_path))
    ours, theirs = Embedder.load(str(tmp_path)), SentenceTransformer(str(tmp_path), device="cpu")
    assert ours.spec == spec
    texts = [*english[:20], LONG]
    for mine, name in (({"prompt_name": "query"}, "query"), ({"prompt": "to find: "}, None), ({}, None)):
        expected = theirs.encode(texts, batch_size=7, **({"prompt_name": name} if name else mine))
        assert np.abs(ours.encode(texts, **mine) - expected).max() < 1e-5
    assert np.abs(ours.encode(texts, prompt_name="query") - theirs.encode_query(texts)).max() < 1e-5
    assert np.abs(ours.encode(texts, prompt_name="document") - theirs.encode_document(texts)).max() < 1e-5
    assert np.abs(ours.encode(texts) - ours.encode(texts, prompt="")).max() > 1e-3
    theirs.save(f"{tmp_path}/theirs")
    assert Embedder.load(f"{tmp_path}/theirs").spec == spec


def test_a_cut_text_keeps_its_prompt(english) -> None:
    embedder = decoder(english, EmbedderSpec(max_length=16, prompts=PROMPTS))
    ids = embedder.tokenize([LONG], "query")[0]
    assert len(ids) == 16
    assert embedder.tokenizer.decode(ids[1:-1]).startswith(PROMPTS["query"] + "click")
    with pytest.raises(ConfigError, match=r"prompt and template take \d+ of 16 tokens"):
        embedder.encode(["a"], prompt=LONG)


@pytest.mark.parametrize("template", ["{text}", "echo"])
def test_a_prompt_of_a_row_that_leaves_no_room_for_its_anchor_is_refused(template: str, english, tmp_path) -> None:
    """All anchors would be the same text."""
    Embedder(tiny_model(wordpiece(english)).bert, wordpiece(english), EmbedderSpec(max_length=24)).save(str(tmp_path))
    task = ContrastiveTask(model_uri=str(tmp_path), spec=EmbedderSpec(max_length=24, template=template_text(template)))
    task.check(prompts=["", "Apply "])
    with pytest.raises(ConfigError, match=r"take \d\d+ of 24 tokens \('Apply Apply .*none for a text"):
        task.check(prompts=["Apply ", "Apply " * 24])


def test_both_sides_may_be_asked_of_every_embedder_and_other_names_only_if_there(english) -> None:
    embedder = decoder(english, EmbedderSpec(max_length=16))
    assert np.array_equal(embedder.encode(["a file"], prompt_name="query"), embedder.encode(["a file"]))
    with pytest.raises(ConfigError, match=r"no prompt 'sts'. It has no prompts\."):
        embedder.encode(["a file"], prompt_name="sts")
    with pytest.raises(ConfigError, match="no prompt 'sts'"):
        EmbedderSpec(prompts=PROMPTS, default_prompt_name="sts")
    passages = EmbedderSpec(prompts={"passage": "passage: "})
    assert passages.form("document").prompt == "passage: "


def test_a_text_that_is_all_prompt_still_has_a_vector(english) -> None:
    embedder = decoder(english, EmbedderSpec(pooling="max", prompts=PROMPTS, include_prompt=False))
    assert np.isfinite(embedder.encode([""], prompt_name="query")).all()


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("text", ["Choose a file.", LONG, "ναὶ 世界 " * 30])
def test_echo_pools_the_second_copy_which_is_cut_like_the_first(family: str, text: str, english) -> None:
    tokenizer = FAMILIES[family](english)
    template = "Text: {text} and {text}"
    row = TextForm(prompt="Again. ", template=template).tokenize(tokenizer, [text], 40)[0]
    _, closing = row[: row.skip], row[-1:]
    assert closing == [tokenizer.sep_token_id]
    assert len(row) <= 40
    first, second = (tokenizer.decode(part).strip() for part in (row[1 : row.skip], row[row.skip : -1]))
    first = first.rpartition(":")[2].removesuffix("and").strip()
    assert first == second
    assert second
    if len(text) < 20:
        assert second.casefold() == text.casefold()
    else:
        assert len(row) > 40 - 6, "a cut text fills the row"


def test_an_echo_embedding_is_the_mean_of_the_states_of_the_second_copy(english) -> None:
    embedder = decoder(english, EmbedderSpec(max_length=64, template=TEMPLATES["echo"]))
    text = "Choose a file"
    ids = embedder.tokenizer(f"{text} {text}").input_ids
    start = len(embedder.tokenizer(text).input_ids) - 1  # without the closing token
    with torch.no_grad():
        states = embedder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states[start:].mean(dim=0), dim=0).numpy()
    assert np.abs(embedder.encode([text, "Another, which is longer than that"])[0] - expected).max() < 1e-5


def test_only_the_second_copy_reads_the_whole_text(english) -> None:
    """In a causal model, the last word changes the first token of the second copy, and never the first token of a text."""
    words = "Choose a file and click", "Choose a file and save"
    first, other = decoder(english, EmbedderSpec(max_length=64, template="echo", pooling="cls")).encode(words)
    assert np.abs(first - other).max() > 1e-3
    with pytest.raises(ConfigError, match="is causal"):
        decoder(english, EmbedderSpec(max_length=64, pooling="cls"))


def test_prompteol_ends_with_its_own_last_word(english) -> None:
    embedder = decoder(english, EmbedderSpec(pooling="lasttoken", max_length=48, template=template_text("prompteol")))
    for text in ("Choose a file.", LONG):
        ids = embedder.tokenize([text])[0]
        written = embedder.tokenizer.decode(ids, skip_special_tokens=True)
        assert written.startswith('This sentence: "')
        assert written.endswith('" means in one word:"')
        assert ids[-1] not in embedder.tokenizer.all_special_ids
        assert len(ids) <= 48


def test_a_template_names_the_text_once_or_twice() -> None:
    for wrong in ("no text", "{text}{text}{text}", "ecko"):
        with pytest.raises(ConfigError, match=r"is no template. \(embed.template\)|embed.template"):
            template_text(wrong)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": PROMPTS},
        {"prompts": PROMPTS, "include_prompt": False},
        {"template": TEMPLATES["echo"], "pooling": "weightedmean"},
        {"template": TEMPLATES["prompteol"], "pooling": "lasttoken"},
    ],
)
def test_training_encodes_a_text_as_the_embedder_does(english, settings) -> None:
    """Through the rows of the shards and the batches of the training."""
    spec = EmbedderSpec(max_length=40, **settings)
    embedder = decoder(english, spec)
    anchors, positives, negatives = english[:6], [*english[6:11], LONG], [[], [english[12]], [], english[13:15], [], []]
    forms = spec.form("query"), spec.form("document")
    pairs = Pairs(ids=anchors, anchors=anchors, positives=positives, negatives=negatives)
    table = tokenize_pairs(pairs, embedder.tokenizer, 40, forms)
    table = table.append_column("stream", pa.array([0] * 6)).append_column("weight", pa.array([1.0] * 6))
    module = DualEncoder(embedder.model, spec.pooling)
    with torch.no_grad():
        sides = module.represent(PairBatch(table, embedder.tokenizer.pad_token_id, chunk_tokens=200), Needs(vectors=True))
    documents = [*positives, *(text for row in negatives for text in row)]
    assert np.abs(sides.anchors.own.numpy() - embedder.encode(anchors, prompt_name="query")).max() < 1e-5
    assert np.abs(sides.documents.own.numpy() - embedder.encode(documents, prompt_name="document")).max() < 1e-5


def test_sentence_transformers_refuses_a_folder_with_a_template(english, tmp_path) -> None:
    """It would encode the text without the template, which is another vector."""
    from sentence_transformers import SentenceTransformer

    embedder = decoder(english, EmbedderSpec(max_length=40, template=TEMPLATES["echo"]))
    embedder.save(str(tmp_path))
    with pytest.raises(ValueError, match="load_it_with_scion_Embedder"):
        SentenceTransformer(str(tmp_path), device="cpu")
    again = Embedder.load(str(tmp_path))
    assert again.spec == embedder.spec
    assert np.array_equal(again.encode(english[:5]), embedder.encode(english[:5]))
    embedder.spec = replace(embedder.spec, template="{text}")
    embedder.save(str(tmp_path))
    assert json.loads((tmp_path / "modules.json").read_text())[0]["type"] == "sentence_transformers.models.Transformer"


@pytest.mark.parametrize(("name", "side"), [("querry", "query"), ("queries", "query"), ("documents", "document")])
def test_a_prompt_that_is_nearly_that_of_a_side_is_refused(name: str, side: str) -> None:
    EmbedConfig(prompts={"query": "q: ", "passage": "p: ", "sts": "s: "})
    with pytest.raises(ConfigError, match=rf"embed.prompts: no text would have the prompt '{name}'. Did you mean {side}"):
        EmbedConfig(prompts={name: "x: "})


@pytest.mark.parametrize("prompt", ["", "query: ", "query:", "search "])
def test_a_text_that_is_cut_at_its_start_keeps_its_prompt_and_its_end(family, english, prompt) -> None:
    """Of the text's own start nothing is left, also where its first word takes the prompt's blank."""
    form, text = TextForm(prompt=prompt), " ".join(english[:20])
    whole = form.tokenize(family, [text], 1 << 20)[0]
    cut = form.tokenize(family, [text], 16, keeps_end=True)[0]
    spans = family.backend_tokenizer.encode(prompt + text).offsets
    of_prompt = sum(end <= len(prompt) for _, end in spans[:10])  # the first special token is at 0, as its end is
    assert cut == whole[:of_prompt] + whole[len(whole) - (16 - of_prompt) :]
    assert form.tokenize(family, ["a"], 16, keeps_end=True) == form.tokenize(family, ["a"], 16)
