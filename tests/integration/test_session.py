"""A job starts its own Ray cluster, on a machine that ran others before."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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


def test_workers_ask_their_own_cluster_and_not_an_earlier_one() -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short, for the names of sockets
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
        process = subprocess.run([sys.executable, "-c", ASKS], env=environment, capture_output=True, text=True, timeout=300)
        assert process.stdout.splitlines() == ["alive: True"], process.stderr[-2000:]


GROWS = """
import os, ray
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY as KEY, GCS_AUTOSCALER_STATE_NAMESPACE as SPACE
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.experimental.internal_kv import _internal_kv_put
from cluster import capacity
from cluster.ray_executor import RayExecutor
from data_pipeline.errors import ScionError
from trainer.transfer.methods import tokenadapt

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": 1 << 27})
ray.init(nodes.address, log_to_driver=False, logging_level="error")
print(capacity.has_gpus(), capacity.resolve_workers(None))
print("in this process:", RayExecutor(8 << 30).on_gpu(os.getpid) == os.getpid())
group = NodeGroupConfig(name="gpu", max_count=2, resources={"CPU": 2, "GPU": 1})
_internal_kv_put(KEY, ClusterConfig(node_group_configs=[group]).SerializeToString(), overwrite=True, namespace=SPACE)
capacity.REPORT_SECONDS = 0.0

def add_node(line):
    print(line)
    nodes.add_node(num_cpus=2, num_gpus=1, object_store_memory=1 << 27)

capacity.wait_for(2, 1.0, add_node)
print(capacity.has_gpus(), capacity.resolve_workers(None))
print("GPUs of a task:", len(RayExecutor(8 << 30).on_gpu(ray.get_gpu_ids)))
try:
    RayExecutor(8 << 30).on_gpu(tokenadapt.embed_texts, "/nothing/here", [])
except ScionError as error:
    print(type(error).__name__)
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.slow
def test_a_job_waits_for_gpu_nodes_that_come_later() -> None:
    """A head without a GPU, the limits of an autoscaler in Ray's store, and new nodes that claim a GPU each. Tasks that need
    a GPU run on these nodes."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.run([sys.executable, "-c", GROWS], env=environment, capture_output=True, text=True, timeout=300)
    assert process.stdout.splitlines() == [
        "False 2",
        "in this process: True",
        "waiting for the autoscaler: 1 of 3 CPUs, 0 of 2 GPUs are there",
        "waiting for the autoscaler: 1 of 2 GPUs are there",
        "True 2",
        "GPUs of a task: 1",
        "ModelError",
    ], process.stderr[-2000:]
