"""A Ray cluster of a job's own, on a machine that has seen others."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
