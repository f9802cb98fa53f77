"""The preStop hook of a Ray pod: trainings save a checkpoint before the pod goes.

    python -m cluster.kuberay.pre_stop SECONDS

When a pod is deleted, evicted or preempted, Kubernetes sends SIGTERM to its first process only. `ray start` then kills drivers
and workers at once. This hook runs before that, and Kubernetes waits for it. It

1. sends SIGTERM to the drivers of jobs in this pod: each saves and exits with 75, upon which KubeRay retries the RayJob;
2. reports to Ray that the node goes away: trainings of other drivers save, and Ray Serve moves the replicas;
3. waits until no driver, training worker or replica is left in the pod, at most SECONDS.

The head has none of these. It reports all other nodes, since no training outlives the head, and waits until no job runs.
"""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

_DRIVER = "ray_jobs."
_WORKERS = ("ray::RayTrainWorker", "ray::ServeReplica")
"""Beginnings of the titles that Ray gives to the processes of actors."""
_POLL_SECONDS = 1.0
Processes = Callable[[], Iterable[psutil.Process]]


@dataclass(frozen=True, slots=True)
class Raylet:
    """What the arguments of a raylet say about its node."""

    node: str
    is_head: bool
    gcs: str
    dashboard: str


def main(arguments: list[str], processes: Processes = psutil.process_iter) -> int:
    """Runs the hook and returns its exit code; Kubernetes ends the pod in any case.

    Args:
        processes: lists the processes of the pod.
    """
    end = time.monotonic() + float(arguments[0])
    for process in processes():
        if is_driver(command_of(process)):
            process.send_signal(signal.SIGTERM)
    own = next((one for process in processes() if (one := raylet(command_of(process))) is not None), None)
    is_head = own is not None and own.is_head
    if own is not None and (is_head or is_busy(processes)):  # Ray ends a node without work as soon as it is reported
        drain(own, end)
    while time.monotonic() < end and (is_busy(processes) or (is_head and own is not None and _runs_job(own.dashboard))):
        time.sleep(_POLL_SECONDS)
    return 0


def raylet(command: list[str]) -> Raylet | None:
    """The node of a raylet, by its command; None for another process."""
    if not command or not command[0].endswith("/raylet"):
        return None
    words = " ".join(command)
    found = [re.search(rf"--{name}=(\S+)", words) for name in ("node_id", "gcs-address", "webui")]
    node, gcs, dashboard = (one[1] if one is not None else "" for one in found)
    return Raylet(node=node, is_head="node:__internal_head__" in words, gcs=gcs, dashboard=dashboard)


def is_driver(command: list[str]) -> bool:
    """Whether it is the command of a job, `python -m ray_jobs.JOB` or `scion JOB`, and not of the shell around it."""
    if len(command) < 2 or "python" not in command[0].rpartition("/")[2]:
        return False
    is_module = command[1] == "-m" and len(command) > 2 and command[2].startswith(_DRIVER)
    return is_module or command[1].rpartition("/")[2] == "scion"


def is_busy(processes: Processes) -> bool:
    """Whether there is a driver, a training worker or a replica."""
    commands = [command_of(process) for process in processes()]
    return any(is_driver(one) or "".join(one[:1]).startswith(_WORKERS) for one in commands)


def drain(own: Raylet, end: float) -> None:
    """Reports to Ray that this node goes away at `end` of the monotonic clock; for the head, all others."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from ray.core.generated.gcs_pb2 import GcsNodeInfo
    from ray.exceptions import RayError

    deadline = int(1000 * (time.time() + end - time.monotonic()))
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    try:
        client = GcsClient(address=own.gcs)
        every = client.get_all_node_info().values() if own.is_head else []
        others = [one.node_id.hex() for one in every if one.state == GcsNodeInfo.ALIVE and not one.is_head_node]
    except RayError as error:
        print(f"the head does not answer: {error}", file=sys.stderr)
        return
    for node in others if own.is_head else [own.node]:
        try:
            client.drain_node(node, reason, "its pod is being deleted", deadline)
        except RayError as error:  # a node that has gone meanwhile
            print(f"node {node} is not reported: {error}", file=sys.stderr)


def command_of(process: psutil.Process) -> list[str]:
    """The command of a process; empty if it has ended, or is of another user."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _runs_job(dashboard: str) -> bool:
    """Whether a submitted job is running."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        jobs = JobSubmissionClient(f"http://{dashboard}").list_jobs()
    except (ConnectionError, RuntimeError):  # without the dashboard no job can be asked for
        return False
    running = (JobStatus.PENDING, JobStatus.RUNNING)
    return any(job.submission_id is not None and job.status in running for job in jobs)  # not sessions of a notebook


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
