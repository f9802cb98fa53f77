"""Two replicas on Ray Serve, of which one dies while clients ask."""

import asyncio
import json
import time
from collections import Counter

import psutil

from cluster.serve import haproxy
from cluster.serve.app import serve_on_ray
from cluster.serve.config import ServeConfig
from cluster.serve.load import Connection

SHORT = json.dumps({"model": "embedder", "input": "click the button"}).encode()
LARGE = json.dumps({"model": "embedder", "input": ["click the button " * 300] * 80}).encode()
"""400 KB: far more than what HAProxy keeps by default."""


def replicas() -> list[psutil.Process]:
    """The processes of the replicas that this test run started."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if one.is_running() and " ".join(one.cmdline()[:1]).startswith("ray::ServeReplica")]


def test_the_requests_of_a_replica_that_dies_are_answered_by_another(ray_session: None, folder: str) -> None:
    found: Counter[object] = Counter()

    async def client(url: str, body: bytes, until: float) -> None:
        connection = Connection(f"{url}/embeddings")
        while time.perf_counter() < until:
            try:
                found[(await connection.post(body))[0]] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                found[repr(error)] += 1
                connection.close()

    async def clients(url: str) -> None:
        until = time.perf_counter() + 6
        asking = [client(url, body, until) for body in (SHORT, SHORT, SHORT, SHORT, LARGE, LARGE)]
        await asyncio.gather(*asking, kill())

    async def kill() -> None:
        await asyncio.sleep(2)
        processes = await asyncio.to_thread(replicas)
        assert len(processes) == 2
        processes[0].kill()

    with serve_on_ray(ServeConfig(model=folder, port=0, replicas=2)) as url:
        asyncio.run(clients(url))
    assert set(found) == {200}
    assert found[200] > 20


def test_the_environment_of_the_user_wins(monkeypatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_RETRIES", "7")
    first, second = haproxy.local_environment(), haproxy.local_environment()
    assert first["RAY_SERVE_HAPROXY_RETRIES"] == "7"
    assert first["RAY_SERVE_HAPROXY_RETRY_ON"] == haproxy.ENVIRONMENT["RAY_SERVE_HAPROXY_RETRY_ON"]
    ports = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
    assert len({first[name] for name in ports}) == 3
    assert set(first) == set(second) == {*haproxy.ENVIRONMENT, *ports}
