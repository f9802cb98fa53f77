"""The resources of the cluster and of its autoscaler, and the number of workers that they allow."""

import os
import time
from collections.abc import Callable

import ray
from ray.autoscaler.sdk import request_resources

from data_pipeline.errors import ClusterError

DEFAULT_CPU_WORKERS = 2
"""Default number of workers on a cluster without GPUs."""
DRIVER_CPUS = "SCION_DRIVER_CPUS"
"""An environment variable of a submitted job: the cores that its first process holds."""
_POLL_SECONDS = 2.0
REPORT_SECONDS = 30.0
"""Time between two looks at the cluster, and between two lines about it."""
_READER_CPUS = 1
"""CPUs for reading data, besides the workers."""

Say = Callable[[str], None]


def has_gpus() -> bool:
    """Whether workers train on GPUs: the cluster has one, or its autoscaler may add one, on any node."""
    return max(ray.cluster_resources().get("GPU", 0.0), max_resources().get("GPU", 0.0)) >= 1


def cpus_for(workers: int, worker_cpus: float) -> float:
    """CPUs of a job; with 0 workers, of a job with the default number of CPU workers."""
    return (workers or DEFAULT_CPU_WORKERS) * worker_cpus + _READER_CPUS + _driver_cpus()


def _driver_cpus() -> float:
    return float(os.environ.get(DRIVER_CPUS) or 0)


def resolve_workers(workers: int | None) -> int:
    """The number of workers; None means one for each GPU of the cluster, or `DEFAULT_CPU_WORKERS` without GPUs.

    Raises:
        ClusterError: an autoscaler may add GPUs, so they cannot be counted.
    """
    if workers is not None:
        return workers
    gpus, max_gpus = int(ray.cluster_resources().get("GPU", 0.0)), int(max_resources().get("GPU", 0.0))
    if gpus < max_gpus:
        raise ClusterError(
            f"workers=auto counts the GPUs that are there: {gpus or 'none'}; the autoscaler may add some, up to {max_gpus}.",
            "workers",
            "Give the number of workers.",
        )
    return gpus or DEFAULT_CPU_WORKERS


def wait_for(workers: int, worker_cpus: float, say: Say) -> None:
    """Waits until the cluster has room for `workers`, with a GPU each if it has GPUs.

    Requests missing resources from the autoscaler, and reports the wait through `say`.

    Raises:
        ClusterError: the cluster and its autoscaler can never have enough.
    """
    worker = {"CPU": worker_cpus} | ({"GPU": 1.0} if has_gpus() else {})
    needed = {"CPU": cpus_for(workers, worker_cpus)} | ({"GPU": float(workers)} if "GPU" in worker else {})
    _check(needed, workers, worker_cpus)
    if not _missing(needed, ray.cluster_resources()):
        _check_nodes(worker, workers)
        return
    others = [{"CPU": cpus} for cpus in (float(_READER_CPUS), _driver_cpus()) if cpus]
    request_resources(bundles=[worker] * workers + others)  # of the whole cluster, also of what is taken
    try:
        _wait_for_resources(needed, say)
    finally:
        request_resources(bundles=[])  # from now on the workers hold their resources themselves


def _wait_for_resources(needed: dict[str, float], say: Say) -> None:
    """Waits until the cluster has the `needed` resources; from time to time says what is missing. Has no time limit."""
    reported = float("-inf")
    while missing := _missing(needed, ray.cluster_resources()):
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported, have = time.monotonic(), ray.cluster_resources()
            lacking = ", ".join(f"{have.get(kind, 0.0):g} of {needed[kind]:g} {kind}s" for kind in missing)
            say(f"waiting for the autoscaler: {lacking} are there")
        time.sleep(_POLL_SECONDS)


def _check(needed: dict[str, float], workers: int, worker_cpus: float) -> None:
    """Refuses resources that the cluster can never have."""
    current, maximum = ray.cluster_resources(), max_resources()
    have = {kind: max(current.get(kind, 0.0), maximum.get(kind, 0.0)) for kind in needed}
    grows = " and may grow to no more" if maximum else ""
    missing = _missing(needed, have)
    if "GPU" in missing:
        raise ClusterError(
            f"the cluster has {have['GPU']:g} GPUs{grows}, the job asks for {workers} workers with one each.",
            "workers",
            f"Set workers={int(have['GPU'])} or auto, add nodes, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPUs.",
        )
    if "CPU" in missing:
        raise ClusterError(
            f"the cluster has {have['CPU']:g} CPUs{grows}, {workers} workers of {worker_cpus:g} and the reading of data need "
            f"{needed['CPU']:g}.",
            "workers",
            "Lower workers= or worker_cpus=, or add nodes.",
        )


def _check_nodes(worker: dict[str, float], workers: int) -> None:
    """Refuses workers that fit into the cluster's total but not onto its nodes, since a worker needs a single node.

    Passes if the autoscaler may add nodes, whose sizes are unknown here.

    Raises:
        ClusterError: the nodes have room for fewer workers.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get(kind, 0.0) // count for kind, count in worker.items())) for node in nodes)
    if room < workers and not _missing(dict(max_resources()), ray.cluster_resources()):
        size = " and ".join(f"{count:g} {kind}s" for kind, count in worker.items())
        raise ClusterError(
            f"the cluster's nodes have room for {room} workers of {size}, the job asks for {workers}.",
            "workers",
            "Lower workers= or worker_cpus=, or add nodes that hold such a worker.",
        )


def _missing(needed: dict[str, float], have: dict[str, float]) -> list[str]:
    return [kind for kind, count in needed.items() if have.get(kind, 0.0) < count]


def max_resources() -> dict[str, float]:
    """The largest cluster that the autoscaler allows; empty without one. Ray Train refuses workers by the same figures."""
    state = ray._private.state.state
    return {kind: float(count) for kind, count in (state.get_max_resources_from_cluster_config() or {}).items()}
