"""A pipeline's plans ask an object store once about each input."""

from pathlib import Path

import pytest

from data_pipeline.artifacts import storage
from ray_jobs import compare, pipeline
from ray_jobs.config.load import load
from ray_jobs.inputs import model_fingerprint
from tests.flaky_storage import Flaky, flaky  # noqa: F401


@pytest.mark.parametrize("stages", [pipeline.stages, compare.stages])
def test_a_pipeline_asks_a_store_once(stages, flaky: type[Flaky], source_folder: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """It listed the folder of the text sixty times, twice over, before the first stage."""
    for number in range(40):
        storage.write_bytes(f"flaky://run/corpus/{number}.txt", b"text\n")
    for path in Path(source_folder).iterdir():
        storage.write_bytes(f"flaky://run/source/{path.name}", path.read_bytes())
    text = f"text: flaky://run/corpus/*.txt\nsource_model: flaky://run/source\noutput: {tmp_path}/run\nshard: {{length: 64}}\n"
    (tmp_path / "c.yaml").write_text(text)
    config = load(str(tmp_path / "c.yaml"), [])
    Flaky.calls = 0
    first = stages(config)
    assert Flaky.calls < 40
    assert {name: stage.spec.id for name, stage in first.items()} == {name: one.spec.id for name, one in stages(config).items()}
    storage.write_bytes("flaky://run/corpus/0.txt", b"other text\n")
    changed = stages(config)
    assert all(changed[name].spec.id != stage.spec.id for name, stage in first.items() if name != "report")


def test_the_pooling_of_sentence_transformers_is_a_part_of_an_embedder(tmp_path: Path) -> None:
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    (tmp_path / "config.json").write_text("{}")
    found = []
    for mode in ("mean", "cls"):
        pooling.write_text(mode)
        found.append([model_fingerprint(str(tmp_path), pools=pools) for pools in (False, True)])
    (model, embedder), (same, other) = found
    assert model == same
    assert embedder != other
