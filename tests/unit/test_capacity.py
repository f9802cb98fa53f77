"""What is asked of a cluster, on clusters that are simulated by what Ray says of them."""

import pytest

from cluster import capacity
from data_pipeline.errors import ClusterError


@pytest.fixture
def cluster(monkeypatch):
    """Sets what the cluster has and what its autoscaler may add, and notes what is asked of the autoscaler."""

    class Simulated:
        def __init__(self) -> None:
            self.there: dict[str, float] = {}
            self.most: dict[str, float] = {}
            self.nodes: list[dict[str, float]] | None = None
            self.asked: list[list[dict[str, float]]] = []

    made = Simulated()
    monkeypatch.setattr("ray.cluster_resources", lambda: dict(made.there))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in made.nodes or [made.there]])
    monkeypatch.setattr(capacity, "_most", lambda: dict(made.most))
    monkeypatch.setattr(capacity, "request_resources", lambda bundles: made.asked.append(bundles))
    return made


@pytest.mark.parametrize(
    ("gpus", "workers", "refused"), [(0, 2, ""), (2, 2, ""), (8, 2, ""), (1, 2, "1 GPUs"), (4, 8, "4 GPUs")]
)
def test_workers_that_would_wait_for_a_gpu_for_ever_are_refused(cluster, gpus: int, workers: int, refused: str) -> None:
    """The GPUs are the cluster's: a driver on a head node without one sees none of its own."""
    cluster.there = {"CPU": 64.0, "GPU": float(gpus)} if gpus else {"CPU": 64.0}
    assert capacity.has_gpus() is (gpus > 0)
    if not refused:
        capacity.wait_for(workers, 1.0, print)
        return
    with pytest.raises(ClusterError, match=rf"has {refused}, the job asks for {workers} workers.*Set workers={gpus} or auto"):
        capacity.wait_for(workers, 1.0, print)
    assert cluster.asked == []


def test_too_few_cpus_are_refused(cluster) -> None:
    cluster.there = {"CPU": 4.0}
    with pytest.raises(ClusterError, match="has 4 CPUs, 4 workers of 2 and the reading of data need 9"):
        capacity.wait_for(4, 2.0, print)


@pytest.mark.parametrize(
    ("there", "given", "workers"),
    [({"CPU": 16.0}, None, 2), ({"CPU": 96.0, "GPU": 8.0}, None, 8), ({"CPU": 96.0, "GPU": 8.0}, 3, 3), ({"CPU": 2.0}, 5, 5)],
)
def test_auto_is_a_worker_for_each_gpu(cluster, there, given, workers: int) -> None:
    cluster.there = there
    assert capacity.resolve_workers(given) == workers


@pytest.mark.parametrize(("there", "said"), [({"CPU": 4.0}, "there: none"), ({"CPU": 8.0, "GPU": 1.0}, "there: 1")])
def test_auto_cannot_count_gpus_that_an_autoscaler_may_add(cluster, there, said: str) -> None:
    """A run would otherwise train on the one GPU of sixteen that happened to be up."""
    cluster.there, cluster.most = there, {"CPU": 96.0, "GPU": 8.0}
    with pytest.raises(ClusterError, match=rf"{said}; the autoscaler may add some, up to 8.*Give the number of workers"):
        capacity.resolve_workers(None)
    assert capacity.has_gpus()
    cluster.there = dict(cluster.most)
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
    """The sums were enough, and the workers waited for ever."""
    cluster.nodes = nodes
    cluster.there = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    if room >= workers:
        capacity.wait_for(workers, worker_cpus, print)
        return
    with pytest.raises(ClusterError, match=f"nodes have room for {room} workers of"):
        capacity.wait_for(workers, worker_cpus, print)


def test_what_an_autoscaler_may_add_is_asked_for_and_waited_for_in_words(cluster, monkeypatch) -> None:
    cluster.there, cluster.most, said = {"CPU": 3.0}, {"CPU": 96.0, "GPU": 8.0}, []
    naps = iter([{"CPU": 11.0, "GPU": 1.0}, {"CPU": 27.0, "GPU": 4.0}])
    monkeypatch.setattr(capacity.time, "sleep", lambda seconds: setattr(cluster, "there", next(naps)))
    monkeypatch.setattr(capacity, "_SAID_EVERY", 0.0)
    capacity.wait_for(4, 2.0, said.append)
    assert cluster.asked == [[{"CPU": 2.0, "GPU": 1.0}] * 4 + [{"CPU": 1.0}], []]
    assert said == [
        "waiting for the autoscaler: 3 of 9 CPUs, 0 of 4 GPUs are there",
        "waiting for the autoscaler: 1 of 4 GPUs are there",
    ]


@pytest.mark.parametrize(
    ("workers", "worker_cpus", "said"), [(16, 2.0, "has 8 GPUs and may grow to no more"), (8, 16.0, "has 96 CPUs")]
)
def test_more_than_the_autoscaler_may_ever_add_is_refused_at_once(cluster, workers: int, worker_cpus: float, said: str) -> None:
    cluster.there, cluster.most = {"CPU": 3.0}, {"CPU": 96.0, "GPU": 8.0}
    with pytest.raises(ClusterError, match=said):
        capacity.wait_for(workers, worker_cpus, print)
    assert cluster.asked == []


def test_a_wait_that_is_broken_off_takes_its_request_back(cluster, monkeypatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    cluster.there, cluster.most = {"CPU": 1.0}, {"CPU": 96.0}
    monkeypatch.setattr(capacity.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capacity.wait_for(2, 1.0, lambda line: None)
    assert cluster.asked[-1] == []
