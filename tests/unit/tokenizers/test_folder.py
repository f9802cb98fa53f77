"""A worker that needs a tokenizer does not download the model."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError
from data_pipeline.shards.build import load_tokenizer
from tests.benchmarks import made_up
from tests.flaky_storage import Flaky, flaky  # noqa: F401
from trainer.tasks.heldout_text import HeldoutText, evaluate
from trainer.tasks.language_modeling import LanguageModelTask

URI = "flaky://run/model"


@pytest.fixture
def read(flaky: type[Flaky], source_folder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    """Names of the model's files that were read from an object store."""
    for name in storage.files(source_folder):
        storage.write_bytes(storage.join(URI, name), Path(source_folder, name).read_bytes())
    storage.write_bytes(storage.join(URI, "checkpoint", "weights.json"), b"{}")
    names: list[str] = []
    monkeypatch.setattr(
        Flaky, "fault", staticmethod(lambda operation, path: names.append(Path(path).name) if operation == "read" else None)
    )
    return names


def task() -> LanguageModelTask:
    return LanguageModelTask(model_uri=URI, length=8, probability=0.15, seed=1)


@pytest.mark.parametrize("use", [lambda: load_tokenizer(URI), lambda: task().collator(), lambda: task().check()])
def test_a_tokenizer_is_loaded_without_the_weights(read: list[str], use: Callable[[], object]) -> None:
    use()
    assert "tokenizer.json" in read
    assert not [name for name in read if name.endswith(".safetensors") or name == "weights.json"]
    assert len(set(read)) == len(read)


def test_the_error_for_a_missing_folder_names_it(read: list[str]) -> None:
    with pytest.raises((OSError, ModelError), match="nowhere"):
        load_tokenizer("flaky://run/nowhere")


@pytest.mark.usefixtures("alone")
def test_a_run_loads_the_tokenizer_of_its_held_out_rows_once(read: list[str], tmp_path: Path) -> None:
    rows = made_up.rows(str(tmp_path), {"el": 20}, 8, 300, seed=0)
    heldout = HeldoutText(folder=str(tmp_path), manifest=rows, task=task(), rows=20)
    engine = SimpleNamespace(
        device="cpu", eval=lambda: None, train=lambda: None, module=lambda batch: torch.ones(len(batch.labels))
    )
    scores = [evaluate(engine, heldout, 0, 1) for _ in range(3)]
    assert scores[0] == scores[2]
    assert read.count("tokenizer.json") == 1
