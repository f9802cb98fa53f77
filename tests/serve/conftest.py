"""An embedder of two widths and two depths, whose queries can search the index of an earlier version."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import FAMILIES, tiny_model
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.query_drift import Compensation


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> str:
    path: Path = tmp_path_factory.mktemp("embedder")
    tokenizer = FAMILIES["wordpiece"](english)
    prompts = {"query": "search: ", "sts": "similar: "}
    spec = EmbedderSpec(max_length=24, dimensions=(32, 8), layers=(1,), prompts=prompts, include_prompt=False)
    rng = np.random.default_rng(0)
    moves = {("old", 32, None): rng.normal(0, 0.1, 32), ("old", 8, 1): rng.normal(0, 0.1, 8)}
    compensations = {key: Compensation(None, shift) for key, shift in moves.items()}
    embedder = Embedder(tiny_model(tokenizer).bert, tokenizer, spec, compensations)
    embedder.calibrate(embedder.tokenize(english))
    embedder.save(str(path))
    return str(path)


@pytest.fixture(scope="session")
def embedder(folder: str) -> Embedder:
    return Embedder.load(folder)
