"""A small chain on real text, run as a user runs it."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.pairs.shards import PLAIN, STREAM, write_shard
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards import build, corpus, manifest
from data_pipeline.shards.manifest import Manifest
from ray_jobs.cli import main
from tests import ranks
from tests.conftest import SAMPLE

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
text: {folder}/text.parquet
pairs: {folder}/pairs.parquet
test_pairs: {folder}/test_pairs.parquet
source_model: {source}
output: {folder}/run
shard: {{tokenizer: {{vocab_size: 1280}}, length: 32, heldout: 0.2, actors: 1}}
transfer:
  methods:
    wechsel: {{space: {{fasttext: {{dim: 16, epochs: 1, min_count: 2, buckets: 2000}}}}}}
    ofa: {{space: {{fasttext: {{dim: 16, epochs: 1, min_count: 2, buckets: 2000}}}}}}
    tokenadapt: {{space: {{fasttext: {{dim: 16, epochs: 1, min_count: 2, buckets: 2000}}}}}}
    focus: {{fasttext: {{dim: 16, epochs: 1, min_count: 2, buckets: 2000}}}}
pretrain: {{train: {{steps: 6, batch_size: 7, checkpoint_steps: 2, warmup_steps: 5}}, heldout_rows: 16}}
embed: {{train: {{steps: 4, batch_size: 8, checkpoint_steps: 2, warmup_steps: 5}}, max_length: 32}}
"""


@dataclass(frozen=True)
class Chain:
    """A folder with a configuration and its inputs."""

    folder: Path

    @property
    def config(self) -> str:
        return str(self.folder / "tiny.yaml")

    @property
    def output(self) -> Path:
        return self.folder / "run"

    def summary(self) -> dict[str, Any]:
        return json.loads((self.output / "summary.json").read_text())

    def artifact(self, job: str) -> dict[str, Any]:
        return json.loads((self.output / job / "artifact.json").read_text())


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, source_folder: str) -> Chain:
    """Greek help text, 240 pairs to train on and 60 to test with, and a tiny English BERT."""
    folder = tmp_path_factory.mktemp("chain")
    table = pq.read_table(SAMPLE / "test_pairs.parquet")
    pq.write_table(table.slice(0, 240), folder / "pairs.parquet")
    pq.write_table(table.slice(240), folder / "test_pairs.parquet")
    text = pq.read_table(SAMPLE / "test_text.parquet")
    pq.write_table(text.slice(0, 100), folder / "text.parquet", row_group_size=20)
    # With dropout: a run that resumes after a kill must draw the same masks again.
    shutil.copytree(source_folder, folder / "source")
    settings = json.loads((folder / "source" / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "source" / "config.json").write_text(json.dumps(settings))
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder, source=folder / "source"))
    return Chain(folder)


@pytest.fixture
def copy(inputs: Chain, tmp_path: Path) -> Chain:
    """The same inputs with a new output folder."""
    for path in inputs.folder.glob("*.parquet"):
        os.symlink(path, tmp_path / path.name)
    os.symlink(inputs.folder / "source", tmp_path / "source")
    text = Path(inputs.config).read_text().replace(str(inputs.folder), str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(text)
    return Chain(tmp_path)


def scion(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in this process, on the session's Ray: a new process would spend seconds on imports."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def scion_process(*arguments: str, address: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command in a new process, on the cluster at `address` or on a new Ray."""
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *arguments],
        cwd=ROOT,
        env=environment(address),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def environment(address: str | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return env | ({"RAY_ADDRESS": address} if address else {})


@pytest.fixture(scope="session")
def address(ray_session: None) -> str:
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def finished_chain(inputs: Chain, address: str) -> Chain:
    """The whole chain, run once on the session's cluster."""
    process = scion_process("pipeline", inputs.config, address=address)
    assert process.returncode == 0, process.stdout + process.stderr
    return inputs


@pytest.fixture(scope="session")
def shards(ray_session: None, tmp_path_factory: pytest.TempPathFactory, greek, source_folder: str) -> tuple[str, Manifest]:
    folder = tmp_path_factory.mktemp("shards {x}")  # braces in paths used to be formatted
    (folder / "text.txt").write_text("\n".join(greek).replace("\n\n", "\n"))
    text = corpus.build(
        [str(folder / "text.txt")],
        None,
        str(folder / "text"),
        fraction=0.1,
        lang="el",
        seed=0,
        actors=1,
        forbidden=(),
        progress=lambda done, total: None,
    )
    build.build(
        text.train,
        source_folder,
        str(folder / "rows"),
        length=32,
        packing="concat",
        actors=1,
        progress=lambda done, total: None,
    )
    return str(folder / "rows"), manifest.load(str(folder / "rows"))


@pytest.fixture
def without_ray_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains jobs without Ray Train: the same engine starts seconds sooner (`tests.ranks`)."""
    monkeypatch.setattr("ray_jobs.training.fit", lambda run, *, workers, **_: ranks.fit(run, workers=workers))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def pair_shards(pairs: list[dict[str, str]], tokenizer_uri: str, folder: str, max_length: int = 16) -> Manifest:
    """Shards of pairs as `data_pipeline.pairs.shards.build` writes them, without Ray."""
    anchors, positives = ([row[side] for row in pairs] for side in ("anchor", "positive"))
    path = f"{STREAM}/part-00000.parquet"
    columns = Pairs(ids=list(map(str, range(len(pairs)))), anchors=anchors, positives=positives, negatives=[[] for _ in pairs])
    place = {"path": path, "folder": folder}
    job = {"pairs": columns, "max_length": max_length, "uri": tokenizer_uri, "forms": PLAIN} | place
    manifest = Manifest(length=0, vocab_size=1, tokenizer="", streams={STREAM: (write_shard(job),)})
    manifest.save(folder)
    return manifest
