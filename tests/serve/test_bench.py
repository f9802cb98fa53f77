"""`scion bench`: the load generator as a command."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from data_pipeline.errors import ClusterError, ConfigError, DataError
from ray_jobs import bench


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, dict]:
    """The table, and the object of the last line."""
    bench.command(list(arguments), Console(width=200))
    *table, last = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(last)


def test_an_endpoint_is_measured(folder: str, tmp_path: Path, capsys, monkeypatch) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("click the button\n\nsave the file\n")
    monkeypatch.setenv("SCION_API_KEYS", "secret")
    monkeypatch.setenv("SCION_API_KEY", "secret")
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        request = "request={dimensions: 8}"
        table, found = run(capsys, url, f"texts={texts}", "clients=[1,3]", "batch=2", "seconds=0.3", request)
        _, poisson = run(capsys, f"{url}/embeddings", "rate=50", "seconds=0.4")
    assert set(found) == {"1 client", "3 clients"}
    assert all(one["errors"] == 0 and one["requests"] > 1 for one in found.values())
    assert "embedder at http" in table
    assert "2 texts a request" in table
    assert poisson["50 requests/s"]["requests"] == 20


def test_a_mistake_is_shown_as_the_endpoint_words_it(folder: str, capsys) -> None:
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        with pytest.raises(ClusterError, match=r"answers 400: .*does not offer 9"):
            bench.command([url, "request={dimensions: 9}"], Console())
        with pytest.raises(ClusterError, match=r"answers 404: .*no model"):
            bench.command([url, "model=gpt"], Console())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "the endpoint is missing"),
        (["seconds=3"], ConfigError, "the endpoint is missing"),
        (["http://127.0.0.1:9/v1", "client=3"], ConfigError, "client"),
        (["http://127.0.0.1:9/v1", "clients=[0]"], ConfigError, "clients: must be above 0, got 0"),
        (["http://127.0.0.1:9/v1", "clients=0"], ConfigError, "clients: must be above 0"),
        (["http://127.0.0.1:9/v1", "seconds=-1"], ConfigError, "seconds: must be above 0, got -1"),
        (["http://127.0.0.1:9/v1", "rate=5", "clients=[1]"], ConfigError, "a rate has no number of clients"),
        (["http://127.0.0.1:9/v1"], ClusterError, "there is no answer"),
        (["nonsense"], ClusterError, "there is no answer"),
        (["http://127.0.0.1:9/v1", "model=m", "texts=nowhere.txt"], DataError, "cannot be read"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        bench.command(arguments, Console())
