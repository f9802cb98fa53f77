"""`embed.stages`: trainings one after the other, each on pairs of its own."""

from pathlib import Path

import pytest

from data_pipeline.errors import ScionError
from ray_jobs import embed, embed_stages, pipeline, preflight
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.stage import main_start
from tests.conftest import FAMILIES, tiny_model
from tests.integration.conftest import write_rows

STAGES = "embed.stages=[{{name: weak, pairs: {0}/weak.parquet, embed: {{train: {{steps: 7}}}}}}, {{name: middle}}]"


@pytest.fixture
def folder(tmp_path: Path, english: list[str]) -> Path:
    tokenizer = FAMILIES["wordpiece"](english)
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"anchor": text, "positive": f"{text} {text}", "id": str(number)} for number, text in enumerate(english[:30])]
    for name in ("pairs", "weak"):
        write_rows(tmp_path / f"{name}.parquet", rows)
    write_rows(tmp_path / "text.parquet", [{"text": text} for text in english[:5]])
    return tmp_path


def config(folder: Path, *overrides: str) -> ScionConfig:
    keys = [f"text: {folder}/text.parquet", f"source_model: {folder}/base", f"output: {folder}/run", "control: false"]
    (folder / "c.yaml").write_text("\n".join([*keys, f"pairs: {folder}/pairs.parquet"]))
    return load(str(folder / "c.yaml"), list(overrides))


def test_each_training_starts_from_the_one_before(folder: Path) -> None:
    given = config(folder, STAGES.format(folder), "embed.train.steps=3")
    first, second, last = embed_stages.every(given, "embed")
    assert [one.folder for one in (first, second, last)] == ["embed-weak", "embed-middle", "embed"]
    assert [one.config.embed.train.steps for one in (first, second, last)] == [7, 3, 3]
    assert [one.config.pairs for one in (first, second)] == [f"{folder}/weak.parquet", f"{folder}/pairs.parquet"]
    made = embed.stages(given, main_start(given))
    assert [stage.spec.uri for stage in made.values()] == [f"{folder}/run/{name}" for name in made]
    specs = [stage.spec for stage in made.values()]
    assert [spec.inputs["model"] for spec in specs[1:]] == [spec.id for spec in specs[:-1]]


def test_what_a_stage_changes_is_part_of_the_last_embedder(folder: Path) -> None:
    ids = {
        embed.spec(given, main_start(given)).id
        for given in (
            config(folder),
            config(folder, STAGES.format(folder)),
            config(folder, STAGES.format(folder).replace("steps: 7", "steps: 8")),
            config(folder, STAGES.format(folder).replace(", {name: middle}", "")),
        )
    }
    assert len(ids) == 4


def test_the_pipeline_runs_all_of_them_in_order(folder: Path) -> None:
    names = list(pipeline.stages(config(folder, STAGES.format(folder))))
    start = names.index("embed-weak")
    assert names[start : start + 3] == ["embed-weak", "embed-middle", "embed"]


def test_a_stage_has_paths_tasks_and_prompts_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in other directories; and the tasks of the last training may be none of its own."""
    monkeypatch.chdir(folder)
    own = "{name: weak, pairs: weak.parquet, embed: {model: base, weights: {a: 1}, prompts: {document: 'd: '}}}"
    last = ["embed.weights={b: 2, c: 1}", "embed.prompts={query: 'q: '}"]
    first, second = embed_stages.every(config(folder, f"embed.stages=[{own}]", *last), "embed")
    assert (first.config.pairs, first.config.embed.model) == (f"{folder}/weak.parquet", f"{folder}/base")
    assert first.config.embed.weights == {"a": 1.0}
    assert first.config.embed.prompts == {"document": "d: "}
    assert second.config.embed.weights == {"b": 2.0, "c": 1.0}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{name: weak}, {name: weak}]", "two stages are called weak"),
        ("[{pairs: a.parquet}]", "'' is not the name of a folder"),
        ("[{name: a/b}]", "'a/b' is not the name of a folder"),
        ("[{name: a, steps: 3}]", r"embed.stages\[0\].steps.*of name and pairs, embed"),
        ("[{name: a, embed: {train: {steps: many}}}]", r"embed.stages\[0\].embed.train.steps.*expected integer"),
        ("[{name: a, embed: {max_length: 1}}]", r"embed.stages\[0\]"),
        ("[{name: a, pairs: nowhere.parquet}]", "pairs of embed-a"),
        ("[{name: a, embed: {max_length: 4000}}]", "rows of 4,000 tokens do not fit"),
        ("[{name: a, embed: {mined: true}}]", "mined for the last training only"),
    ],
)
def test_a_stage_that_cannot_work_is_refused_at_the_start(folder: Path, stages: str, message: str) -> None:
    with pytest.raises(ScionError, match=message):
        preflight.check(config(folder, f"embed.stages={stages}", "shard.length=64"), "pipeline")
