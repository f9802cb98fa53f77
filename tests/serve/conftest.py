"""An embedder of two widths and two depths, whose queries can search the index of an earlier version; its page in a browser."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from tests.conftest import FAMILIES, tiny_model
from tests.serve.browser import Opener, launched, opened, type_texts
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.query_drift import Compensation

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> str:
    path: Path = tmp_path_factory.mktemp("embedder")
    tokenizer = FAMILIES["wordpiece"](english)
    prompts = {"query": "search: ", "sts": "similar: "}
    spec = EmbedderSpec(max_length=24, dimensions=(32, 8), layers=(1,), prompts=prompts, include_prompt=False)
    rng = np.random.default_rng(0)
    moves = {("old", 32, None): rng.normal(0, 0.1, 32), ("old", 8, 1): rng.normal(0, 0.1, 8)}
    compensations = {key: Compensation(None, shift) for key, shift in moves.items()}
    torch.manual_seed(0)
    embedder = Embedder(tiny_model(tokenizer).bert, tokenizer, spec, compensations)
    embedder.calibrate(embedder.tokenize(english))
    embedder.save(str(path))
    return str(path)


@pytest.fixture(scope="session")
def embedder(folder: str) -> Embedder:
    return Embedder.load(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> str:
    folder = tmp_path_factory.mktemp("source_tokenizer")
    FAMILIES["byte_level"](english, 400).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def url(browser: "Browser", folder: str, source: str) -> Iterator[str]:
    with serve_in_process(ServeConfig(model=folder, name="tiny", port=0, source_tokenizer=source, max_inputs=50)) as base:
        yield base.removesuffix("v1")


@pytest.fixture
def show(browser: "Browser") -> Iterator[Opener]:
    """Opens the page and, where texts are given, types them."""
    with ExitStack() as stack:

        def show(url: str, texts: list[str] | None = None, **settings: Any) -> "Page":
            page = stack.enter_context(opened(browser, url, **settings))
            if texts is not None:
                type_texts(page, texts)
            return page

        yield show
