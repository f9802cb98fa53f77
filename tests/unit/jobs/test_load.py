"""Reading a configuration: YAML scalars, globs, language tags, references, and values that are rejected."""

from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.shards import corpus
from ray_jobs import shard
from ray_jobs.config.load import load, save_config, to_dict, to_yaml, with_absolute_paths
from ray_jobs.config.yaml_text import parse
from tests.integration.conftest import write_rows
from tests.unit.shards.test_sample import in_this_process
from trainer.config.train import RateChange

BASE = "text: a.parquet\npairs: p.jsonl\ntest_pairs: t.jsonl\nsource_model: m\noutput: out\n"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(BASE)
    return str(tmp_path / "c.yaml")


def test_no_is_norwegian_everywhere(path: str, tmp_path: Path) -> None:
    config = load(path, ["shard.lang=no", "pretrain.weights={no: .5, sv: 0.5}"])
    assert config.shard.lang == "no"
    assert config.pretrain.weights == {"no": 0.5, "sv": 0.5}
    (tmp_path / "d.yaml").write_text(BASE + "shard: {lang: no}\npretrain: {weights: {no: 1, on: 2}}\n")
    assert load(str(tmp_path / "d.yaml"), []).pretrain.weights == {"no": 1.0, "on": 2.0}
    (tmp_path / "e.yaml").write_text(to_yaml(config))
    assert load(str(tmp_path / "e.yaml"), []) == config


def test_a_glob_is_text_and_true_is_still_true(path: str) -> None:
    config = load(path, ["text=*.parquet", "transfer.copy_shared=false", "pretrain.train.learning_rate=3e-4"])
    assert config.text == "*.parquet"
    assert config.transfer.copy_shared is False
    assert config.pretrain.train.learning_rate == 3e-4
    assert load(path, ["transfer.match=[exact,bytes]", "test_text=null"]).transfer.match == ("exact", "bytes")


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE + "text: b.parquet\n")
    with pytest.raises(ConfigError, match="the key text occurs twice"):
        load(str(tmp_path / "c.yaml"), [])


@pytest.mark.parametrize("lang", ["../../escape", "a/b", "", "el ", ".", "a" * 65, "..", "el\n"])
def test_a_tag_never_leaves_the_output(path: str, lang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lang:
        rows = write_rows(tmp_path / "text.parquet", [{"text": "one", "lang": lang}])
        monkeypatch.setattr(corpus, "ray_map", in_this_process)
        settings = {"fraction": 0.5, "lang": "und", "seed": 0, "forbidden": (), "actors": 1, "progress": lambda *_: None}
        with pytest.raises(DataError, match=r"is not a language tag.*|text\.parquet"):
            corpus.build([rows], None, str(tmp_path / "text"), **settings)
        assert not (tmp_path / "text").exists()
    with pytest.raises(ConfigError, match="is not a language tag"):
        load(path, [f"shard.lang='{lang}'" if lang != "el\n" else 'shard.lang="el\\n"'])


@pytest.mark.parametrize(
    ("written", "read"),
    {
        "12:30": "12:30", "010": "010", "2026-11-27": "2026-11-27", "0x1F": "0x1F", "off": "off", "1_000": "1_000",
        "1e-4": 1e-4, ".5": 0.5, "3.": 3.0, "-1": -1, "0": 0, "true": True, "~": None, "": None, "1.5.2": "1.5.2",
    }.items(),
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(written: str, read: object) -> None:
    assert parse(f"key: {written}")["key"] == read


def test_text_that_looks_like_a_number_of_yaml_1_1_survives_the_file_beside_the_run(path: str, tmp_path: Path) -> None:
    config = load(path, ["output=010", "shard.lang=010", "seed=7", "text=12:30"])
    assert (config.output, config.shard.lang, config.text) == ("010", "010", "12:30")
    (tmp_path / "e.yaml").write_text(to_yaml(config))
    assert load(str(tmp_path / "e.yaml"), []) == config
    assert load(path, ["pretrain.train.steps=010"]).pretrain.train.steps == 10


def test_a_language_that_no_document_has_is_reported(path: str) -> None:
    assert shard.unused_language_note("el", ("el", "tr")) == ""
    assert shard.unused_language_note(load(path, []).shard.lang, ("el",)) == ""
    assert shard.unused_language_note("gr", ("el", "tr")).endswith("column lang of the text names el, tr")


def test_two_betas_and_changes_of_the_rate_are_read(path: str) -> None:
    config = load(path, ["pretrain.train.betas=[0.9, 0.98]", "pretrain.train.rate_changes=[{since: 9, factor: 0.5}]"])
    assert config.pretrain.train.betas == (0.9, 0.98)
    assert config.pretrain.train.rate_changes == (RateChange(since=9, factor=0.5),)
    with pytest.raises(ConfigError, match=r"betas"):
        load(path, ["pretrain.train.betas=[0.9]"])


@pytest.mark.parametrize("written", ["workers=auto", "workers=null", "seed=1"])
def test_the_number_of_workers_is_left_to_the_cluster(path: str, written: str) -> None:
    assert load(path, [written]).workers is None


def test_auto_after_a_number_and_a_number_after_auto(path: str) -> None:
    assert load(path, ["workers=3", "workers=auto"]).workers is None
    assert load(path, ["workers=auto", "workers=3"]).workers == 3


def test_pairs_have_no_micro_batch(path: str) -> None:
    with pytest.raises(ConfigError, match=r"embed.train.micro_batch: contrastive training has no micro-batches.*chunk_tokens"):
        load(path, ["embed.train.micro_batch=8"])
    with pytest.raises(ConfigError, match=r"embed.chunk_tokens: a chunk holds at least one text: 100 is below max_length=128"):
        load(path, ["embed.chunk_tokens=100"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["workers=many"], "workers: expected integer or null, got many"),
        (["workers=0"], "must be above 0"),
        (["workers=2", "min_workers=3"], "between 1 and workers=2, got 3"),
    ],
)
def test_a_number_of_workers_that_cannot_be(path: str, written: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(path, written)


@pytest.mark.parametrize("written", ["${nope:x}", "${oc.env:NO_SUCH_VARIABLE}", "${nokey}", "${broken", "${oc.env:NO,two}"])
def test_a_reference_that_leads_nowhere_names_its_key(tmp_path: Path, written: str) -> None:
    (tmp_path / "c.yaml").write_text(BASE + f"seed: {written}\n")
    with pytest.raises(ConfigError, match=r"c.yaml: seed: its value cannot be found .*Correct the \$\{...\}") as raised:
        load(str(tmp_path / "c.yaml"), [])
    assert "full_key" not in str(raised.value)


def test_an_embedder_is_not_evaluated_without_test_pairs(path: str) -> None:
    assert load(path, ["embed.train.evaluate_steps=5"]).embed.train.evaluate_steps == 5
    with pytest.raises(ConfigError, match="no test pairs"):
        load(path, ["embed.train.evaluate_steps=5", "test_pairs=null"])


def test_an_average_is_not_divided_among_other_workers(path: str) -> None:
    assert load(path, ["embed.train.ema=0.9", "workers=4", "min_workers=4"]).embed.train.ema == 0.9
    with pytest.raises(ConfigError, match=r"the average of train\.ema cannot be divided"):
        load(path, ["embed.train.ema=0.9", "workers=4", "min_workers=2"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("pretrain.train.steps=-3", r"pretrain\.train: steps must be at least 1, got -3"),
        ("embed.train.ema=1.5", r"embed\.train: ema must lie between 0 and 1"),
        ("shard.tokenizer.vocab_size=10", r"shard\.tokenizer: .*at least 300, got 10"),
        ("pretrain.train.learning_rate=.nan", "expected a finite number"),
        ("pretrain.train.spike=.inf", "expected a finite number"),
        ("worker_cpus=.nan", "expected a finite number"),
        ("pretrain.weights={el: .5, tr: .nan}", "expected a finite number"),
        ("pretrain.train.betas=[0.9, .nan]", "expected a finite number"),
        ("pretrain.weights={el: -1, tr: 0.5}", "weights must be at least 0"),
        ("pretrain.weights={el: 0, tr: 0}", "one of them above"),
        ("pretrain.alpha=7", "alpha must lie between 0 and 1"),
        ("pretrain.stages=[{until: 10}, {until: 5}]", "one after the other"),
        ("pretrain.stages=[{until: 5, alpha: 3}]", "alpha must lie between"),
        ("pretrain.stages=[{until: 5, weights: {el: -2}}]", "weights must be at least 0"),
        ("pretrain.train.batch_warmup=[{until: 10, rows: 4}, {until: 5, rows: 8}]", "one after the other"),
        ("pretrain.train.batch_warmup=[{until: 0, rows: 4}]", "one after the other"),
        ("pretrain.train.weight_decay=-1", "weight_decay must be at least 0"),
        ("shard.heldout=1.5", "heldout is a share"),
        ("seed=10000000000000000000000", "seed must lie between"),
        ("seed=-1", "seed must lie between"),
        ("transfer.factorise.rank=0", "at least 1"),
        ("transfer.factorise.energy=3", "energy is a share"),
    ],
)
def test_a_value_that_would_fail_or_train_on_something_else_later_is_refused(path: str, written: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(path, [written])


@pytest.mark.parametrize("written", ["output=s3://b/run[1]", "output=gs://b/run*", "shards=s3://b/sh?rds"])
def test_an_output_that_is_a_pattern_to_an_object_store_is_refused(path: str, written: str) -> None:
    with pytest.raises(ConfigError, match="would be a pattern to an object store"):
        load(path, [written])


def test_a_password_is_not_written_beside_the_run(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS_PW", "hunter2")
    settings = load(path, ["text='https://me:${oc.env:CORPUS_PW}@corpus.example/el.txt'"])
    assert "hunter2" in settings.text
    masked_url = "https://me:***@corpus.example/el.txt"
    assert masked_url in to_yaml(settings)
    assert to_dict(settings)["text"] == masked_url
    assert masked_url in str(DataError("no such file.", f"text={settings.text}"))


WRONG = {
    "shard.heldout=0": r"shard\.heldout: nothing would be held out",
    "compare.seeds=[-1]": r"compare\.seeds: .*between 0 and",
    "compare.seeds=[99999999999999999999]": r"compare\.seeds",
    "pretrain.train.first_step_minutes=1e300": r"pretrain\.train: .*first_step_minutes",
    "embed={max_length: '${shard.length}', heldout_pairs: 0}": r"embed: embed needs max_length of at least 4",
}


@pytest.mark.parametrize("written", WRONG)
def test_errors_that_came_after_hours_are_raised_at_once(tmp_path: Path, written: str) -> None:
    (tmp_path / "c.yaml").write_text("text: a.txt\nsource_model: m\noutput: o\n")
    with pytest.raises(ConfigError, match=WRONG[written]):
        load(str(tmp_path / "c.yaml"), [written])


def test_with_held_out_text_nothing_else_need_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("text: a.txt\ntest_text: b.txt\nsource_model: m\noutput: o\nshard: {heldout: 0}\n")
    assert load(str(tmp_path / "c.yaml"), []).shard.heldout == 0


def test_a_config_yaml_of_the_users_own_stays(tmp_path: Path) -> None:
    """`scion pipeline config.yaml output=.` wrote over it: comments were gone, passwords stars."""
    content = "# mine\ntext: a.txt\nsource_model: m\noutput: .\n"
    (tmp_path / "config.yaml").write_text(content)
    save_config(load(str(tmp_path / "config.yaml"), [f"output={tmp_path}"]))
    assert (tmp_path / "config.yaml").read_text() == content
    for seed in (0, 1):
        save_config(load(str(tmp_path / "config.yaml"), [f"output={tmp_path}/run", f"seed={seed}"]))
        assert load(str(tmp_path / "run" / "config.yaml"), []).seed == seed


def test_a_reference_may_stand_in_a_list_and_in_a_map(path: str) -> None:
    given = ["merge.models=['${output}/a', '${output}/b']", "pretrain.weights={el: '${pretrain.alpha}'}"]
    found = load(path, given, "merge")
    assert list(found.merge.models) == [f"{found.output}/a", f"{found.output}/b"]
    assert found.pretrain.weights == {"el": found.pretrain.alpha}


def test_embedders_are_named_by_their_absolute_folders(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors and tasks that load them run in other directories."""
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    teacher = ["embed.objective=[info_nce,embedding_distillation]", "embed.teacher=old"]
    found = with_absolute_paths(load(path, [*teacher, "drift.versions={v1: old, v2: ./new, v3: org/model}"]))
    assert found.embed.teacher == f"{tmp_path}/old"
    assert found.drift.versions == {"v1": f"{tmp_path}/old", "v2": f"{tmp_path}/new", "v3": "org/model"}


def test_the_written_configuration_of_a_job_without_text_can_be_read_again(tmp_path: Path) -> None:
    values = {"output": str(tmp_path), "pairs": "a.jsonl", "embed": {"model": "models/minilm"}}
    config = load(None, [], "embed", values=values)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(str(tmp_path / "config.yaml"), [], "embed") == config
