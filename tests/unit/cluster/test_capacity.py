"""Resources requested of a cluster, on clusters simulated by Ray's answers."""

import pytest

from cluster import capacity
from data_pipeline.errors import ClusterError


@pytest.fixture
def cluster(monkeypatch):
    """Sets the resources of the cluster and its autoscaler, and records the requests to the autoscaler."""

    class Simulated:
        def __init__(self) -> None:
            self.resources: dict[str, float] = {}
            self.maximum: dict[str, float] = {}
            self.nodes: list[dict[str, float]] | None = None
            self.requests: list[list[dict[str, float]]] = []

    simulated = Simulated()

    def nodes() -> list[dict]:
        return [{"Alive": True, "Resources": node} for node in simulated.nodes or [simulated.resources]]

    monkeypatch.setattr("ray.cluster_resources", lambda: dict(simulated.resources))
    monkeypatch.setattr("ray.nodes", nodes)
    monkeypatch.setattr(capacity, "max_resources", lambda: dict(simulated.maximum))
    monkeypatch.setattr(capacity, "request_resources", lambda bundles: simulated.requests.append(bundles))
    return simulated


@pytest.mark.parametrize(
    ("gpus", "workers", "refused"), [(0, 2, ""), (2, 2, ""), (8, 2, ""), (1, 2, "1 GPUs"), (4, 8, "4 GPUs")]
)
def test_workers_without_enough_gpus_are_refused(cluster, gpus: int, workers: int, refused: str) -> None:
    """GPUs are counted in the cluster: a driver on a head node without GPUs sees none of its own."""
    cluster.resources = {"CPU": 64.0, "GPU": float(gpus)} if gpus else {"CPU": 64.0}
    assert capacity.has_gpus() is (gpus > 0)
    if not refused:
        capacity.wait_for(workers, 1.0, print)
        return
    with pytest.raises(ClusterError, match=rf"has {refused}, the job asks for {workers} workers.*Set workers={gpus} or auto"):
        capacity.wait_for(workers, 1.0, print)
    assert cluster.requests == []


def test_too_few_cpus_are_refused(cluster) -> None:
    cluster.resources = {"CPU": 4.0}
    with pytest.raises(ClusterError, match="has 4 CPUs, 4 workers of 2 and the reading of data need 9"):
        capacity.wait_for(4, 2.0, print)


@pytest.mark.parametrize(
    ("resources", "given", "workers"),
    [({"CPU": 16.0}, None, 2), ({"CPU": 96.0, "GPU": 8.0}, None, 8), ({"CPU": 96.0, "GPU": 8.0}, 3, 3), ({"CPU": 2.0}, 5, 5)],
)
def test_auto_is_one_worker_a_gpu(cluster, resources, given, workers: int) -> None:
    cluster.resources = resources
    assert capacity.resolve_workers(given) == workers


@pytest.mark.parametrize(("resources", "message"), [({"CPU": 4.0}, "there: none"), ({"CPU": 8.0, "GPU": 1.0}, "there: 1")])
def test_auto_cannot_count_gpus_that_an_autoscaler_may_add(cluster, resources, message: str) -> None:
    """Otherwise a run would train on the one GPU of sixteen that happened to be up."""
    cluster.resources, cluster.maximum = resources, {"CPU": 96.0, "GPU": 8.0}
    with pytest.raises(ClusterError, match=rf"{message}; the autoscaler may add some, up to 8.*Give the number of workers"):
        capacity.resolve_workers(None)
    assert capacity.has_gpus()
    cluster.resources = dict(cluster.maximum)
    assert capacity.resolve_workers(None) == 8


@pytest.mark.parametrize(
    ("nodes", "workers", "worker_cpus", "room"),
    [
        ([{"CPU": 64.0}, *[{"CPU": 1.0, "GPU": 1.0}] * 8], 8, 4.0, 0),
        ([{"CPU": 2.0}] * 16, 4, 4.0, 0),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 4.0}], 4, 2.0, 4),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 4.0}], 5, 2.0, 4),
    ],
)
def test_a_worker_must_fit_a_node(cluster, nodes, workers: int, worker_cpus: float, room: int) -> None:
    """Once the cluster's sums were large enough, and the workers waited for ever."""
    cluster.nodes = nodes
    cluster.resources = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    if room >= workers:
        capacity.wait_for(workers, worker_cpus, print)
        return
    with pytest.raises(ClusterError, match=f"nodes have room for {room} workers of"):
        capacity.wait_for(workers, worker_cpus, print)


def test_missing_resources_are_requested_and_the_wait_is_reported(cluster, monkeypatch) -> None:
    cluster.resources, cluster.maximum, lines = {"CPU": 3.0}, {"CPU": 96.0, "GPU": 8.0}, []
    growth = iter([{"CPU": 11.0, "GPU": 1.0}, {"CPU": 27.0, "GPU": 4.0}])
    monkeypatch.setattr(capacity.time, "sleep", lambda seconds: setattr(cluster, "resources", next(growth)))
    monkeypatch.setattr(capacity, "REPORT_SECONDS", 0.0)
    capacity.wait_for(4, 2.0, lines.append)
    assert cluster.requests == [[{"CPU": 2.0, "GPU": 1.0}] * 4 + [{"CPU": 1.0}], []]
    assert lines == [
        "waiting for the autoscaler: 3 of 9 CPUs, 0 of 4 GPUs are there",
        "waiting for the autoscaler: 1 of 4 GPUs are there",
    ]


@pytest.mark.parametrize(
    ("workers", "worker_cpus", "message"), [(16, 2.0, "has 8 GPUs and may grow to no more"), (8, 16.0, "has 96 CPUs")]
)
def test_more_than_the_autoscaler_may_ever_add_is_refused_at_once(
    cluster, workers: int, worker_cpus: float, message: str
) -> None:
    cluster.resources, cluster.maximum = {"CPU": 3.0}, {"CPU": 96.0, "GPU": 8.0}
    with pytest.raises(ClusterError, match=message):
        capacity.wait_for(workers, worker_cpus, print)
    assert cluster.requests == []


def test_an_interrupted_wait_withdraws_its_request(cluster, monkeypatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    cluster.resources, cluster.maximum = {"CPU": 1.0}, {"CPU": 96.0}
    monkeypatch.setattr(capacity.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capacity.wait_for(2, 1.0, lambda line: None)
    assert cluster.requests[-1] == []


def test_the_autoscaler_is_asked_for_the_driver_of_a_submitted_job_too(cluster, monkeypatch) -> None:
    """It counts what the nodes have, not what is free there: without the driver's core it added no node, for ever."""
    monkeypatch.setenv(capacity.DRIVER_CPUS, "2")
    monkeypatch.setattr(capacity, "_wait_for_resources", lambda needed, say: requested.append(needed))
    requested: list[dict[str, float]] = []
    cluster.resources, cluster.maximum = {"CPU": 9.0}, {"CPU": 64.0}
    capacity.wait_for(8, 1.0, print)
    assert sum(bundle["CPU"] for bundle in cluster.requests[0]) == requested[0]["CPU"] == 11.0
