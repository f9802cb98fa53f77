"""What the cluster has, what its autoscaler may add, and the number of workers that fits it."""

import time
from collections.abc import Callable

import ray
from ray.autoscaler.sdk import request_resources

from data_pipeline.errors import ClusterError

DEFAULT_CPU_WORKERS = 2
"""Workers where nobody has given a number and there is no GPU."""
_EVERY = 2.0
_SAID_EVERY = 30.0
"""Seconds between two looks at the cluster, and two lines that say what it has."""
_READER = 1
"""CPUs that reading the data takes beside the workers."""

Say = Callable[[str], None]


def has_gpus() -> bool:
    """Whether workers train on GPUs: the cluster has some or its autoscaler may add some, on whatever node."""
    return max(ray.cluster_resources().get("GPU", 0.0), _most().get("GPU", 0.0)) >= 1


def cpus_for(workers: int, worker_cpus: float) -> float:
    """CPUs of a job; of one on CPUs where there are 0 workers."""
    return (workers or DEFAULT_CPU_WORKERS) * worker_cpus + _READER


def resolve_workers(workers: int | None) -> int:
    """The number of workers: as many as the cluster has GPUs where none is given, or `DEFAULT_CPU_WORKERS` where it has none.

    Raises:
        ClusterError: an autoscaler may add GPUs to those that are there.
    """
    if workers is not None:
        return workers
    gpus, most = int(ray.cluster_resources().get("GPU", 0.0)), int(_most().get("GPU", 0.0))
    if gpus < most:
        raise ClusterError(
            f"workers=auto counts the GPUs that are there: {gpus or 'none'}; the autoscaler may add some, up to {most}.",
            "workers",
            "Give the number of workers.",
        )
    return gpus or DEFAULT_CPU_WORKERS


def wait_for(workers: int, worker_cpus: float, say: Say) -> None:
    """Returns once the cluster has room for `workers`, with a GPU each where it has GPUs. What an autoscaler may add is asked
    for, and `say` gets a line now and then while it is on its way.

    Raises:
        ClusterError: neither the cluster nor its autoscaler can ever have as much.
    """
    worker = {"CPU": worker_cpus} | ({"GPU": 1.0} if has_gpus() else {})
    needed = {"CPU": cpus_for(workers, worker_cpus)} | ({"GPU": float(workers)} if "GPU" in worker else {})
    _check(needed, workers, worker_cpus)
    if not _missing(needed, ray.cluster_resources()):
        _check_nodes(worker, workers)
        return
    request_resources(bundles=[worker] * workers + [{"CPU": float(_READER)}])
    try:
        _watch(needed, say)
    finally:
        request_resources(bundles=[])  # the workers themselves hold what they need from now on


def _watch(needed: dict[str, float], say: Say) -> None:
    said = float("-inf")
    while missing := _missing(needed, ray.cluster_resources()):
        if time.monotonic() - said >= _SAID_EVERY:
            said, have = time.monotonic(), ray.cluster_resources()
            lacking = ", ".join(f"{have.get(kind, 0.0):g} of {needed[kind]:g} {kind}s" for kind in missing)
            say(f"waiting for the autoscaler: {lacking} are there")
        time.sleep(_EVERY)


def _check(needed: dict[str, float], workers: int, worker_cpus: float) -> None:
    """Refuses what would be waited for in vain."""
    there, most = ray.cluster_resources(), _most()
    have = {kind: max(there.get(kind, 0.0), most.get(kind, 0.0)) for kind in needed}
    grows = " and may grow to no more" if most else ""
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
    """Refuses workers for which the cluster as a whole has enough, but no node does: each has one node. What an autoscaler may
    add is of sizes that are not known here.

    Raises:
        ClusterError: so it is.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get(kind, 0.0) // count for kind, count in worker.items())) for node in alive)
    if room < workers and not _missing(dict(_most()), ray.cluster_resources()):
        one = " and ".join(f"{count:g} {kind}s" for kind, count in worker.items())
        raise ClusterError(
            f"the cluster's nodes have room for {room} workers of {one}, the job asks for {workers}.",
            "workers",
            "Lower workers= or worker_cpus=, or add nodes that hold such a worker.",
        )


def _missing(needed: dict[str, float], have: dict[str, float]) -> list[str]:
    return [kind for kind, count in needed.items() if have.get(kind, 0.0) < count]


def _most() -> dict[str, float]:
    """What the autoscaler may grow the cluster to; empty without one. Ray Train refuses workers by the same figures."""
    state = ray._private.state.state
    return {kind: float(count) for kind, count in (state.get_max_resources_from_cluster_config() or {}).items()}
