"""`scion JOB --help` and `scion config`."""

import ast
import re
from pathlib import Path

import pytest

from ray_jobs.cli import main
from ray_jobs.config.keys import keys
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import COMMON, jobs

BASE = "text: a.parquet\npairs: p.jsonl\ntest_pairs: t.jsonl\nsource_model: m\noutput: out\n"
JOB_FILES = Path(__file__).parents[3] / "ray_jobs"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(BASE)
    return str(tmp_path / "c.yaml")


def test_config_prints_doc_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "transfer.methods.focus", "embed.train.steps"]) == 0
    printed = capsys.readouterr().out
    assert "transfer.methods.focus.kind: fasttext or ppmi, default fasttext\n" in printed
    assert (
        "transfer.methods.focus.vectors: text or null, default null\n    A `.bin` or `.vec` file of word vectors of the new"
        in printed
    )
    assert "transfer.methods.focus.fasttext.epochs: integer, default 3\n" in printed  # not fastText's own default
    assert "embed.train.steps: integer, default 1000\n" in printed
    assert "pretrain" not in printed
    assert main(["config"]) == 0
    assert "transfer.methods.omp.k: integer, default 64\n    Maximum number of atoms" in (
        printed := capsys.readouterr().out
    )  # inherited
    assert "pretrain.stages[].until: integer, must be given\n    The step at which it ends." in printed
    assert "source_model: text, must be given\n" in printed
    assert main(["config", "transfer.focus"]) == 2
    assert "Did you mean transfer.methods.focus?" in capsys.readouterr().err


def test_every_key_has_a_doc() -> None:
    assert [key.name for key in keys(ScionConfig) if not key.doc] == []


def test_every_key_is_printed_and_can_be_set_to_its_default(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["config"])
    defaults = dict(re.findall(r"^(\S+): .*?, default (.*(?:\n {8}.*)*)$", capsys.readouterr().out, flags=re.M))
    flat = {key.name for key in keys(ScionConfig) if "[]" not in key.name}
    assert flat - set(defaults) == {"text", "source_model", "output"}
    given = [f"{name}={' '.join(value.split())}" for name, value in defaults.items() if name in flat]
    bare = ["pairs=null", "test_pairs=null"]  # which the file gives
    assert load(path, given) == load(path, bare)


@pytest.mark.parametrize("job", jobs())
def test_help_of_a_job_names_what_it_reads_and_its_keys(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([job, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: scion {job} CONFIG")
    assert f"reads   {jobs()[job].reads}\n" in printed
    assert f"writes  {jobs()[job].writes}\n" in printed
    for key in (*COMMON, *jobs()[job].keys):
        assert re.search(rf"^{key}[.:]", printed, flags=re.M), key
    if job == "shard":
        assert "pretrain." not in printed


@pytest.mark.parametrize("job", [job for job, row in jobs().items() if row.keys])
def test_a_job_reads_no_key_that_its_help_leaves_out(job: str) -> None:
    module = JOB_FILES / ("report/job.py" if job == "report" else f"{job}.py")
    read = {
        node.attr
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    sections = {key.name.partition(".")[0] for key in keys(ScionConfig)}
    inputs = {key for one in jobs()[job].after for key in jobs()[one].keys}
    assert read & sections <= {*COMMON, *jobs()[job].keys, *inputs}
