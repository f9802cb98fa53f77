"""Every table has its keys in the configuration, and its rows in the help text and in the documentation."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.pairs.builders import BUILDERS
from ray_jobs.config import tables
from ray_jobs.config.keys import keys
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from trainer.evaluation import METRICS
from trainer.merging import MERGES
from trainer.objectives import OBJECTIVES
from trainer.transfer.methods import METHODS
from trainer.word_vectors import VECTORS

TABLES: dict[str, Mapping[str, Any]] = {
    "transfer.methods": METHODS,
    "transfer.methods.focus": VECTORS,
    "transfer.methods.wechsel.space": VECTORS,
    "embed.objectives": OBJECTIVES,
    "embed.builders": BUILDERS,
    "merge.methods": MERGES,
    "evaluate.settings": METRICS,
}
CHOICES = {
    "method=nonsense": "method",
    "transfer.methods.focus.kind=nonsense": "transfer.methods.focus.kind",
    "embed.objective=nonsense": "embed.objective",
    "embed.builder=nonsense": "embed.builder",
    "merge.method=nonsense": "merge.method",
    "evaluate.metrics=[nonsense]": "evaluate.metrics",
}


@pytest.fixture
def conf(tmp_path: Path) -> str:
    path = tmp_path / "conf.yaml"
    path.write_text("text: corpus.txt\nsource_model: model\noutput: out\n")
    return str(path)


@pytest.mark.parametrize("section", TABLES)
def test_each_row_has_a_section_with_its_settings(section: str) -> None:
    names = {key.name for key in keys(ScionConfig)}
    for name, entry in TABLES[section].items():
        for field in dataclasses.fields(entry.config):
            prefix = f"{section}.{name}.{field.name}"
            assert any(key == prefix or key.startswith(f"{prefix}.") for key in names), prefix


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_each_row_names_its_paper_and_has_defaults(table: Mapping[str, Any]) -> None:
    for name, entry in table.items():
        assert entry.paper, name
        entry.config()


@pytest.mark.parametrize("override", CHOICES)
def test_a_name_that_no_table_has_is_refused_with_those_that_it_has(conf: str, override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(conf, [override])
    assert CHOICES[override] in str(refused.value)
    assert "nonsense" in str(refused.value)


def test_an_objective_without_vectors_is_no_objective_of_an_embedder(conf: str) -> None:
    with pytest.raises(ConfigError, match="'language_modeling' is not in the table"):
        load(conf, ["embed.objective=language_modeling"])


def test_a_setting_of_a_row_never_hides_a_key_of_its_section() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Angle:
        max_length: int = 5

    def artefact(max_length: int) -> dict[str, Any]:
        return {"max_length": max_length} | tables.identity("objective", "angle", Angle(), default="info_nce")

    assert artefact(64) != artefact(128)
