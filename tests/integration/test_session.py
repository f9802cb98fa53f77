"""A Ray cluster of a job's own, on a machine that has seen others."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import session
from data_pipeline.errors import ClusterError

ASKS = """
import ray
from cluster.session import ray_session

@ray.remote(num_cpus=0)
class Controller:
    def name(self):
        return ray.get_runtime_context().get_actor_id()

@ray.remote(num_cpus=0)
def alive(actor):
    from ray.train.v2._internal.state.util import is_actor_alive
    return is_actor_alive(actor_id=actor, timeout=10)

with ray_session(workers=1, worker_cpus=1.0, address=None):
    controller = Controller.remote()
    print("alive:", bool(ray.get(alive.remote(ray.get(controller.name.remote())))))
"""


def test_workers_ask_their_own_cluster_and_not_one_that_was_here_before() -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short, for the names of sockets
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", ASKS], env=environment, capture_output=True, text=True, timeout=300)
        assert done.stdout.splitlines() == ["alive: True"], done.stderr[-2000:]


@pytest.mark.parametrize(("gpus", "workers", "said"), [(0, 2, ""), (2, 2, ""), (8, 2, ""), (1, 2, "1 GPUs"), (4, 8, "4 GPUs")])
def test_workers_that_would_wait_for_a_gpu_for_ever_are_refused(monkeypatch, gpus: int, workers: int, said: str) -> None:
    """The GPUs are the cluster's: a driver on a head node without one sees none of its own."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": float(gpus)} if gpus else {"CPU": 64.0})
    assert session.has_gpus() is (gpus > 0)
    if not said:
        session._check_size(workers, 1.0)
        return
    with pytest.raises(ClusterError, match=rf"has {said}, the job asks for {workers} workers.*Set workers={gpus}"):
        session._check_size(workers, 1.0)


def test_too_few_cpus_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ClusterError, match="has 4 CPUs, the job needs 9"):
        session._check_size(4, 2.0)
