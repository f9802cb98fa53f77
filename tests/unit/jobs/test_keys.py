"""Errors for keys that do not exist and for values of the wrong type."""

from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError
from ray_jobs.config import keys
from ray_jobs.config.load import load, to_yaml
from ray_jobs.config.schema import MixturePhase, ScionConfig
from trainer.config.train import BatchPart

BASE = "text: a.parquet\npairs: p.jsonl\ntest_pairs: t.jsonl\nsource_model: m\noutput: out\n"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(BASE)
    return str(tmp_path / "c.yaml")


REFUSED = {
    "qwerty=1": "qwerty: there is no such key. `scion config` lists every key.",
    "pretrain.train.step=3": "pretrain.train.step: there is no such key. Did you mean pretrain.train.steps?",
    "steps=3": "steps: there is no such key. Did you mean pretrain.train.steps or embed.train.steps or "
    "merge.methods.self_positioning.steps?",
    "pretrain.train.lr=3": "pretrain.train.lr: there is no such key. Did you mean pretrain.train.learning_rate?",
    "embed.train.max_grad_norm=1": "embed.train.max_grad_norm: there is no such key. Did you mean embed.train.clip?",
    "pretrian.train.steps=3": "pretrian: there is no such key. Did you mean pretrain?",
    "pretrain.lenght=3": "pretrain.lenght: there is no such key. Did you mean shard.length?",
    "transfer.methods.focs.kind=ppmi": "transfer.methods.focs: there is no such key. Did you mean transfer.methods.focus?",
    "pretrain.stages=[{until: 3, alfa: 2}]": (
        "pretrain.stages[0].alfa: there is no such key. Did you mean pretrain.stages[].alpha?"
    ),
    "pretrain.train.steps=many": "pretrain.train.steps: expected integer, got many.",
    "pretrain.train.learning_rate=fast": "pretrain.train.learning_rate: expected number, got fast.",
    "seed=null": "seed: expected integer, got null.",
    "transfer.methods.focus.kind=fastext": "transfer.methods.focus.kind: expected fasttext or ppmi, got fastext.",
    "shard.layout=maybe": "shard.layout: expected true or false or null, got maybe.",
    "transfer.match=exact": "transfer.match: expected list of text, got exact.",
    "compare.seeds=[0, a]": "compare.seeds: expected list of integer, got [0, a].",
    "pretrain.weights={el: x}": "pretrain.weights: expected map of text to number, got {el: x}.",
    "text.x=1": "text: expected text, got {x: 1}.",
    "merge=3": "merge: expected a section, got 3. Its keys: models, base, method, methods.",
    "pretrain.stages=[{until: x}]": "pretrain.stages[0].until: expected integer, got x.",
    "pretrain.stages=[{alpha: 1}]": "pretrain.stages[0]: until must be given.",
    "pretrain.train.batch_warmup=[[1, 2]]": (
        "pretrain.train.batch_warmup[0]: expected a section, got [1, 2]. Its keys: until, rows."
    ),
}


@pytest.mark.parametrize("written", REFUSED)
def test_a_mistake_names_its_key(path: str, written: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(path, [written])
    assert str(refused.value) == REFUSED[written]


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE + "pretrain: {train: {step: 3}}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: pretrain\.train\.step: .* pretrain\.train\.steps\?"):
        load(str(tmp_path / "c.yaml"), [])


def test_a_file_that_is_no_mapping_and_a_value_that_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("- text: a.parquet\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: expected a section, got \[\{text: a\.parquet\}\]\. Its keys: text, "):
        load(str(tmp_path / "c.yaml"), [])
    (tmp_path / "d.yaml").write_text(BASE.replace("text: a.parquet", "text: ???"))
    with pytest.raises(ConfigError, match="text must be given"):
        load(str(tmp_path / "d.yaml"), [])


def test_lists_of_sections_have_the_types_of_their_fields(path: str, tmp_path: Path) -> None:
    given = ["pretrain.stages=[{until: 5, weights: {el: 1}}]", "pretrain.train.batch_warmup=[{until: 3, rows: 8}]"]
    config = load(path, given)
    assert config.pretrain.stages == (MixturePhase(until=5, weights={"el": 1.0}),)
    assert config.pretrain.train.batch_warmup == (BatchPart(until=3, rows=8),)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(str(tmp_path / "again.yaml"), []) == config


def test_every_name_of_other_trainers_leads_to_a_key_of_ours() -> None:
    ends = {key.name.rpartition(".")[2] for key in keys.keys(ScionConfig)}
    assert set(keys.NAMES_ELSEWHERE.values()) <= ends
    assert not set(keys.NAMES_ELSEWHERE) & ends


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["output=''"], "output: it is empty. Name a file or folder, or leave the key out."),
        (["output=${oc.env:SCION_TEST_EMPTY}"], "output: it is empty."),
        (["test_text=''"], "test_text: it is empty."),
        (["pretrain.train.max_failures=-5"], "max_failures must be at least 0"),
        (["workers=2", "embed.train={zero_stage: 3, hpz: 3}"], "embed.train.hpz: 3 workers share .* and 2 are no multiple"),
    ],
)
def test_what_would_fail_hours_later(path: str, given: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCION_TEST_EMPTY", "")
    with pytest.raises(ConfigError, match=message):
        load(path, given)


def test_half_of_a_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE + 'shards: "\\ud83d"\n')
    with pytest.raises(ConfigError, match="half a character"):
        load(str(tmp_path / "c.yaml"), [])
