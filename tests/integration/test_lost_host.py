"""A machine of the cluster is lost without notice: a run that allows fewer workers resumes soon."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.integration.conftest import ROOT, Chain, scion
from trainer.monitoring import run_log

CLUSTER = """
from ray.cluster_utils import Cluster

size = {"num_cpus": 1, "object_store_memory": 1 << 27}
nodes = Cluster(initialize_head=True, head_node_args=size | {"include_dashboard": True, "dashboard_port": 0})
other = nodes.add_node(**size)
print(nodes.address, flush=True)
input()
nodes.remove_node(other, allow_graceful=False)
print("lost", flush=True)
input()
"""


def clean_environment(address: str | None) -> dict[str, str]:
    """The environment without variables of the session's cluster."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return variables | ({"RAY_ADDRESS": address} if address else {})


@pytest.fixture
def cluster() -> Iterator[subprocess.Popen[str]]:
    """Two machines with a core each; a line on its stdin removes the second."""
    running = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(None)
    )
    yield running
    running.kill()
    running.wait()


def entries(uri: str, kind: str, world: int) -> list[dict]:
    attempts = run_log.read(f"{uri}/{run_log.FOLDER}")
    matching, current = [], 0
    for entry in (entry for attempt in attempts for entry in attempt):
        current = entry["world"] if entry["kind"] == "start" else current
        if entry["kind"] == kind and current == world:
            matching.append(entry)
    return matching


@pytest.mark.slow
def test_a_run_with_min_workers_resumes_soon_after_a_host_is_lost(copy: Chain, cluster: subprocess.Popen[str]) -> None:
    assert scion("transfer", copy.config, "method=mean").returncode == 0
    assert cluster.stdout is not None
    assert cluster.stdin is not None
    address = cluster.stdout.readline().strip()
    settings = [
        "method=mean",
        "workers=2",
        "min_workers=1",
        "pretrain.train.steps=100000",
        "pretrain.train.checkpoint_steps=20",
    ]
    running = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", "pretrain", copy.config, *settings],
        cwd=ROOT,
        env=clean_environment(address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    uri = str(copy.output / "pretrain")
    try:
        wait_until(lambda: len(entries(uri, "step", 2)) > 30, running, 300)
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        while cluster.stdout.readline() != "lost\n":  # Ray prints other lines first
            pass
        lost = time.time()
        wait_until(lambda: len(entries(uri, "step", 1)) > 0, running, 600)
        seconds = entries(uri, "step", 1)[0]["time"] - lost
        print(f"a lost host costs {seconds:.0f} s")
        assert seconds < 120  # Ray Train alone waited 300 s for the machine that was gone
    finally:
        running.kill()
        running.wait()


def wait_until(condition, running: subprocess.Popen[bytes], seconds: float) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, running.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.5)
