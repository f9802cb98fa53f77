"""An embedder of two widths."""

from pathlib import Path

import pytest

from tests.conftest import FAMILIES, tiny_model
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> str:
    path: Path = tmp_path_factory.mktemp("embedder")
    tokenizer = FAMILIES["wordpiece"](english)
    prompts = {"query": "search: ", "sts": "similar: "}
    spec = EmbedderSpec(max_length=24, dimensions=(32, 8), prompts=prompts, include_prompt=False)
    Embedder(tiny_model(tokenizer).bert, tokenizer, spec).save(str(path))
    return str(path)


@pytest.fixture(scope="session")
def embedder(folder: str) -> Embedder:
    return Embedder.load(folder)
