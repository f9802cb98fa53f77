"""Jobs by Ray's job API, on the session's cluster."""

import os
import sys
from pathlib import Path

import pytest
import ray

from tests.integration.conftest import Chain, scion, write_rows


@pytest.fixture
def url(ray_session: None) -> str:
    return ray.get_runtime_context().runtime_env["env_vars"]["RAY_API_SERVER_ADDRESS"]


def options(chain: Chain, url: str) -> list[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = f"submit.runtime_env={{env_vars: {{PATH: '{path}', TOKENIZERS_PARALLELISM: 'true'}}}}"
    return [f"submit.address={url}", f"submit.working_dir={chain.folder}", "submit.driver_cpus=0", "workers=1", environment]


def test_a_submitted_job_ends_as_it_would_here(copy: Chain, url: str) -> None:
    (copy.folder / "unsent.bin").write_bytes(bytes(1000))
    done = scion("submit", "shard", copy.config, *options(copy, url), "submit.excludes=['*.bin']")
    if "Ray's agent on the head does not run" in done.stderr:
        pytest.skip("another Ray of this machine holds the port by which jobs are started")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted run-shard-1" in done.stdout
    assert "rows of 32 tokens" in done.stdout
    assert copy.artifact("shards")["kind"] == "shards"
    path = write_rows(copy.folder / "odd.parquet", [{"body": "text"}])
    failed = scion("submit", "shard", copy.config, *options(copy, url), f"text={path}", f"shards={copy.folder}/others")
    assert failed.returncode == 2
    assert "column text is missing" in failed.stdout
    assert "run-shard-2: it has failed: exit code 2" in failed.stderr
    listed = scion("jobs", f"address={url}").stdout
    assert "run-shard-1" in listed
    assert "run-shard-2" in listed


def test_what_the_cluster_does_not_know_is_named(url: str) -> None:
    for word in ("follow", "stop"):
        process = scion("jobs", word, "nothing", f"address={url}")
        assert process.returncode == 2
        assert "nothing: there is no such job" in process.stderr


def test_a_folder_that_is_too_large_is_refused_with_its_largest_files(copy: Chain, url: str) -> None:
    with (copy.folder / "weights.bin").open("wb") as file:
        for _ in range(110):
            file.write(os.urandom(1 << 20))
    process = scion("submit", "shard", copy.config, *options(copy, url))
    assert process.returncode == 2
    assert "it is too large to be sent" in process.stderr
    assert "weights.bin (115 MB)" in process.stderr
