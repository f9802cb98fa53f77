"""Several raylets on this machine, and `scion pretrain` on them as a user starts it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from trainer.checkpoints.store import Store
from trainer.monitoring import run_log

ROOT = Path(__file__).parent.parent.parent
WORKERS, CPUS = 2, 2
"""Training workers, and the CPUs of each worker and of each node: every worker has its own node."""
_NODE = {"num_cpus": CPUS, "object_store_memory": 150 << 20}
_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_timeout_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
"""Health checks that declare a silent node dead within seconds."""
_NOTICE_SECONDS = 40
_LONGEST_SECONDS = 400.0
"""Longest wait for the next step after a fault. In elastic runs, Ray Train's coordinator reserves the CPUs of a killed driver
for another 180 s (`AUTOSCALING_REQUESTS_EXPIRE_TIME_S`)."""
_RAY_TITLES = (
    "ray::IDLE",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::_AutoscalingCoordinatorActor",
    "ray::_StatsActor",
    "ray::_UsageCollectionActor",
)
"""Titles of processes that live as long as the cluster: idle workers and Ray's services."""
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class Rig:
    """A head that is too small for a worker, and one node per worker."""

    cluster: Cluster
    root: Path = ROOT
    """The folder of the code that runs; a mutant has its own."""
    nodes: list[Any] = field(default_factory=list)

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(**_NODE))

    def remove_node(self, node: Any) -> None:
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def workers(self) -> list[psutil.Process]:
        """The training workers, oldest first."""
        processes = [process for process in self._processes() if "RayTrainWorker" in _title(process)]
        return sorted(processes, key=lambda process: process.create_time())

    def node_of(self, worker: psutil.Process) -> Any:
        """The node that a worker runs on."""
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self.nodes}
        return raylets[next(parent.pid for parent in worker.parents() if parent.pid in raylets)]

    def node_id(self, node: Any) -> str:
        table = self.cluster.global_state.node_table()
        return next(entry["NodeID"] for entry in table if entry["RayletSocketName"] == node.raylet_socket_name)

    def strangers(self) -> list[str]:
        """Processes of jobs that still live after a wait. There must be none when no job runs."""
        return _wait_until_empty(self._strangers)

    def _strangers(self) -> list[str]:
        titles = [_title(process) for process in self._processes()]
        return [title for title in titles if title.startswith("ray::") and not title.startswith(_RAY_TITLES)]

    def _processes(self) -> Iterator[psutil.Process]:
        for node in [self.cluster.head_node, *self.nodes]:
            raylet = node.all_processes["raylet"][0].process.pid
            if psutil.pid_exists(raylet):
                yield from psutil.Process(raylet).children(recursive=True)


def _wait_until_empty(list_remaining: Callable[[], list[str]]) -> list[str]:
    """Waits until the list is empty, and returns what remains after `_NOTICE_SECONDS`."""
    end = time.monotonic() + _NOTICE_SECONDS
    while (remaining := list_remaining()) and time.monotonic() < end:
        time.sleep(1)
    return remaining


def _titles_by_folder(temporary: str) -> list[str]:
    """Titles of processes whose TMPDIR is this folder."""
    titles = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == temporary:
                titles.append(_title(process))
    return titles


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


@contextmanager
def rig(root: Path = ROOT) -> Iterator[Rig]:
    """Runs the raylets while the block runs. They have a dashboard, which the clean-up after a killed driver needs."""
    before = {name: os.environ.get(name) for name in [*_ENVIRONMENT, "PYTHONPATH", "TMPDIR"]}
    temporary = tempfile.mkdtemp(prefix="rig-")
    os.environ.update(_ENVIRONMENT, PYTHONPATH=str(root), TMPDIR=temporary)
    tempfile.tempdir = None  # separates the files of jobs from those of other processes
    head = {"num_cpus": 1, "object_store_memory": 200 << 20, "_system_config": _HEALTH_CHECKS, "include_dashboard": True}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        new_rig = Rig(cluster, root)
        for _ in range(WORKERS):
            new_rig.add_node()
        yield new_rig
    finally:
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        tempfile.tempdir = None
        orphans = _wait_until_empty(lambda: _titles_by_folder(temporary))
        shutil.rmtree(temporary)
    assert not orphans, f"I6 nothing left behind: process {orphans}"


@dataclass
class Run:
    """A run in its own folder, with its driver process."""

    rig: Rig
    folder: Path
    overrides: tuple[str, ...]
    drivers: int = 0
    stderr: str = ""
    """The stderr of the last driver."""
    process: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        return str(self.folder / "run" / "pretrain")

    @property
    def store(self) -> Store:
        return Store(f"{self.uri}/checkpoints", keep=3)

    def start(self) -> None:
        assert self.process is None
        self.drivers += 1
        self.process = self.driver()

    def driver(self, *more: str) -> subprocess.Popen[str]:
        """Starts another driver of the run."""
        command = [sys.executable, "-m", "ray_jobs.cli", "pretrain", str(self.folder / "tiny.yaml"), *self.overrides, *more]
        environment = os.environ | {"RAY_ADDRESS": self.rig.cluster.address}
        return subprocess.Popen(
            command, cwd=self.rig.root, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def wait_for_exit(self, seconds: float = 400) -> int:
        """Waits for the driver and returns its exit code."""
        assert self.process is not None
        try:
            _, self.stderr = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, self.stderr = self.process.communicate()
            raise TimeoutError(f"the driver did not end in {seconds} s: {self.stderr}") from None
        code, self.process = self.process.returncode, None
        return code

    def log(self) -> list[list[dict[str, Any]]]:
        return run_log.read(f"{self.uri}/log")

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return [entry for attempt in self.log() for entry in attempt if entry["kind"] == kind]

    def step(self) -> int:
        """The highest step in the log."""
        return max((entry["step"] for entry in self.entries("step")), default=-1)

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = _LONGEST_SECONDS) -> Any:
        """Waits until `condition` holds, while the driver runs. `what` describes it in errors."""
        end = time.monotonic() + seconds
        while not (answer := condition()):
            if self.process is None or self.process.poll() is not None:
                code = self.wait_for_exit() if self.process is not None else None
                raise AssertionError(f"the driver ended ({code}) before {what}: {self.stderr}")
            if time.monotonic() > end:
                raise AssertionError(f"not in {seconds} s: {what}")
            time.sleep(0.05)
        return answer

    def first_rank(self) -> int:
        """Process id of the first rank in the newest attempt."""
        return int(self.entries("start")[-1]["pid"])

    def stop(self) -> None:
        """Kills the driver and the workers."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
        for worker in self.rig.workers():
            worker.kill()


def copy_inputs(source: Path, folder: Path) -> Path:
    """Makes a run folder with links to the inputs of `source` and copies of its shards and transferred model."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "run":
            (folder / path.name).symlink_to(path)
    for name in ("shards", "transfer"):
        shutil.copytree(source / "run" / name, folder / "run" / name)
    text = (source / "tiny.yaml").read_text().replace(str(source / "run"), str(folder / "run"))
    (folder / "tiny.yaml").unlink()
    (folder / "tiny.yaml").write_text(text)
    return folder
