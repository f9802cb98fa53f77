"""S3 on this machine: moto's server, behind a proxy that can fail."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import fsspec
import pytest

from tests.storage.faulty_proxy import Faults, faulty_proxy

BUCKET = "scion-tests"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def store() -> Iterator[tuple[str, Faults]]:
    """The URL of the store, and its faults."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        with faulty_proxy("127.0.0.1", port) as (url, faults):
            yield url, faults
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def faults(store: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The environment of a user of that store."""
    url, faults = store
    settings = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (settings | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    faults.seen.clear()
    yield faults
    faults.share = 0.0
    faults.next_ones.clear()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def folder(faults: Faults, request: pytest.FixtureRequest) -> str:
    """A folder of the bucket for a test alone."""
    return f"s3://{BUCKET}/{os.getpid()}-{abs(hash(request.node.name))}"
