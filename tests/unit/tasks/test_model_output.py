"""A model folder that is written again contains only the weights of the last save."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModel

from data_pipeline.artifacts import storage
from trainer import embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.tasks import language_modeling
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask

INDEX = "model.safetensors.index.json"


@pytest.fixture(params=["model", "embedder"])
def task(request: pytest.FixtureRequest, source_folder: str) -> Any:
    if request.param == "model":
        return LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    return ContrastiveTask(model_uri=source_folder, spec=EmbedderSpec(max_length=32))


@pytest.fixture
def save(task: Any, uri: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, torch.dtype, str], None]:
    """Exports weights that all have the same value, with a limit on the size of files."""

    def write(value: float, dtype: torch.dtype, most: str) -> None:
        monkeypatch.setattr(language_modeling, "MAX_SHARD_SIZE", most)
        monkeypatch.setattr(embedder, "MAX_SHARD_SIZE", most)
        weights = {name: torch.full_like(one, value, dtype=dtype) for name, one in task.module().named_parameters()}
        task.export(weights, uri)

    return write


def value_in(uri: str) -> float:
    with storage.local_copy(uri) as folder:
        return float(next(AutoModel.from_pretrained(folder).parameters()).detach().flatten()[0])


def test_shards_replace_a_whole_file(save: Callable[[float, torch.dtype, str], None], uri: str) -> None:
    save(1.0, torch.bfloat16, "5GB")
    assert "model.safetensors" in storage.files(uri)
    save(2.0, torch.float32, "100KB")
    assert "model.safetensors" not in storage.files(uri)
    assert INDEX in storage.files(uri)
    assert value_in(uri) == 2.0


def test_a_whole_file_replaces_shards_and_their_index(save: Callable[[float, torch.dtype, str], None], uri: str) -> None:
    save(1.0, torch.float32, "100KB")
    storage.write_bytes(storage.join(uri, "checkpoints/model.safetensors"), b"a checkpoint's")
    storage.write_bytes(storage.join(uri, "voice.safetensors"), b"the user's")
    save(2.0, torch.bfloat16, "5GB")
    weights = [name for name in storage.files(uri) if "safetensors" in name]
    assert weights == ["checkpoints/model.safetensors", "model.safetensors", "voice.safetensors"]
    assert value_in(uri) == 2.0
