"""Clean text: with single blanks for encoders, with its layout for decoders."""

import json
from pathlib import Path

import pytest
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

from data_pipeline.shards import corpus
from data_pipeline.text.clean import clean
from ray_jobs import shard
from ray_jobs.config.load import load
from tests.integration.conftest import CONFIG
from tests.unit.shards.test_sample import in_this_process

CODE = "def f(x):\r\n    if x:\n\treturn  1   \n\n\n\n\n\n# e\u0301nd\u0000\u200b\n\n"


def test_layout_is_dropped_or_kept() -> None:
    assert clean(CODE) == "def f(x):\nif x:\nreturn 1\n# énd"
    assert clean(CODE, layout=True) == "def f(x):\n    if x:\n\treturn  1\n\n\n# énd"
    for text in (CODE, "  a\n", "\n \n", "x\vy"):
        assert clean(clean(text, True), True) == clean(text, True)
        assert clean(clean(text, True)) == clean(text)


def test_documents_keep_their_layout_on_request(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "ray_map", in_this_process)
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{CODE}{number}"}) for number in range(20)))
    for layout in (True, False):
        result = corpus.build(
            [str(path)],
            None,
            str(tmp_path / str(layout)),
            fraction=0.2,
            lang="en",
            seed=0,
            forbidden=(),
            actors=1,
            progress=lambda *_: None,
            layout=layout,
        )
        texts = [text for _, text in corpus.read_texts(result.train)]
        assert all(("    if x:\n\treturn" in text) == layout for text in texts)


@pytest.mark.parametrize(
    ("model", "keeps"), [(GPT2Config(), True), (LlamaConfig(), True), (BertConfig(), False), (T5Config(), False)]
)
def test_decoders_keep_layout_unless_set_otherwise(model, keeps: bool, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path, source=tmp_path / "source"))
    assert shard.keeps_layout(load(str(tmp_path / "c.yaml"), [])) is keeps
    assert shard.keeps_layout(load(str(tmp_path / "c.yaml"), [f"shard.layout={not keeps}".lower()])) is not keeps
