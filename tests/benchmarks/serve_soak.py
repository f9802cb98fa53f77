"""The endpoint for minutes under load while its replicas are killed and its model is replaced: what is lost, what is wrong.

    python -m tests.benchmarks.serve_soak [--host ray|process] [--minutes 10] [--kill-seconds 60] [--set NAME=VALUE ...]

all-MiniLM-L6-v2 in fp32, one thread a replica, asked over loopback for a text a request at random moments (Poisson), at 80 % of
what 32 clients got a second before. Each vector is compared with `Embedder.encode` of the version that its answer
names. A new version, the same weights but for noise, is served from two fifths of the time to four fifths.

ray       Two replicas behind HAProxy (cluster/serve/haproxy.py), deployed as a RayService is. A replica is killed with SIGKILL
          every minute. At the end HAProxy is killed, and then Ray's proxy actors: the seconds until the first answer.
          `--set` changes the environment, such as RAY_SERVE_HAPROXY_RETRY_ON=conn-failure.
process   One process without Ray. The model is replaced every minute by SIGHUP. Beside the load are clients that leave in the
          midst, slow ones, and one that sends 1,024 texts at a time.

A request is lost if it has no answer, or another than 200, or 429 or 503 in OpenAI's form. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cluster.serve.haproxy import ENVIRONMENT
from cluster.serve.load import Connection, closed_loop
from cluster.serve.model import version_of
from tests.benchmarks.embed import model_folder
from tests.benchmarks.serve import texts
from tests.benchmarks.serve_clients import (
    NAME,
    PORT,
    TOLERANCE,
    URL,
    Questions,
    Seen,
    arrivals,
    asked,
    leavers,
    many_texts,
    slow_ones,
)
from trainer.embedder import Embedder

SHARE = 0.8
WARM_SECONDS = 30.0
"""Load before memory is measured for the first time."""
ON_RAY = """
import signal, sys
import ray
from cluster.session import ray_session

first, name, port = sys.argv[1:]
with ray_session(workers=2, worker_cpus=1.0, address=None):
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    client = ServeSubmissionClient(ray.get_runtime_context().runtime_env["env_vars"]["RAY_API_SERVER_ADDRESS"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    for folder in sys.stdin:
        deployment = {"name": "EmbedderReplica", "user_config": {"models": {name: folder.strip()}, "aliases": {}}}
        application = {"name": name, "import_path": "cluster.serve.app:app", "deployments": [deployment]}
        application["args"] = {"model": first, "name": name, "replicas": 2}
        http = {"host": "127.0.0.1", "port": int(port)}
        client.deploy_applications({"proxy_location": "HeadOnly", "http_options": http, "applications": [application]})
"""
"""A local Ray. Deploys the application, as `serve deploy` does, with each folder that it reads from its standard input."""


class Process:
    """`scion serve` without Ray; its model is a link."""

    def __init__(self, versions: list[str], extra: dict[str, str]) -> None:
        self._link = Path(tempfile.mkdtemp()) / "model"
        self._point_to(versions[0])
        config = self._link.parent / "serve.yaml"
        config.write_text("output: runs/soak\n")
        settings = [f"serve.{key}={value}" for key, value in (("model", self._link), ("port", PORT), ("cpus_per_replica", 1))]
        command = [sys.executable, "-m", "ray_jobs.cli", "serve", str(config), *settings]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment(extra))

    def _point_to(self, folder: str) -> None:
        new = self._link.with_suffix(".new")
        new.symlink_to(folder)
        new.rename(self._link)

    def serve(self, folder: str) -> None:
        """Replaces the model."""
        self._point_to(folder)
        self.process.send_signal(signal.SIGHUP)


class OnRay:
    """Two replicas on a local Ray, deployed through its dashboard."""

    def __init__(self, versions: list[str], extra: dict[str, str]) -> None:
        command = [sys.executable, "-c", ON_RAY, versions[0], NAME, str(PORT)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(extra), text=True)
        self.serve(versions[0])

    def serve(self, folder: str) -> None:
        """Deploys the application, or changes its `user_config` in place."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()

    def of(self, what: str) -> list[psutil.Process]:
        """The processes of this Ray whose command line begins so."""
        return [one for one in psutil.Process(self.process.pid).children(recursive=True) if _command(one).startswith(what)]


def _command(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
        return " ".join([os.path.basename(words[0]), *words[1:]]) if words else ""
    except psutil.Error:
        return ""


def environment(extra: dict[str, str]) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | ENVIRONMENT | extra


@contextmanager
def ended(host: Process | OnRay) -> Iterator[None]:
    """Ends the server behind the block."""
    try:
        yield
    finally:
        host.process.terminate()
        try:
            host.process.wait(90)
        except subprocess.TimeoutExpired:
            host.process.kill()


def memory(host: Process | OnRay) -> dict[str, float]:
    """Unshared memory of the server's processes in MB, by what they are."""
    found: Counter[str] = Counter()
    parent = psutil.Process(host.process.pid)
    for one in (parent, *parent.children(recursive=True)):
        try:
            found[_command(one).split(" ")[0].split(":EmbedderReplica")[0][:30] or "?"] += one.memory_full_info().uss
        except psutil.Error:
            continue
    return {name: round(size / 1e6) for name, size in found.items() if size > 1e6}


async def wait_until_answered(questions: Questions, seconds: float) -> float:
    """Seconds until a request is answered with 200."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        connection, seen = Connection(URL), Seen()
        try:
            async with asyncio.timeout(5):
                await asked(questions, seen, connection, [0])
        except TimeoutError:
            pass
        connection.close()
        if seen.statuses["200"]:
            return round(time.perf_counter() - began, 2)
        await asyncio.sleep(0.05)
    raise SystemExit(f"no answer within {seconds} s")


async def disturb(host: Process | OnRay, versions: list[str], seconds: float, every: float) -> dict[str, int]:
    """Kills replicas and replaces the model; how often."""
    did: Counter[str] = Counter()
    began = time.perf_counter()
    rolls = [(0.4 * seconds, versions[1]), (0.8 * seconds, versions[0])]
    if isinstance(host, Process):
        rolls = [(moment, versions[(number + 1) % 2]) for number, moment in enumerate(np.arange(every / 2, seconds, every))]
    kills = list(np.arange(every / 2, seconds - every / 4, every)) if isinstance(host, OnRay) else []
    plan: list[tuple[float, str | None]] = sorted([*rolls, *[(moment, None) for moment in kills]], key=lambda one: one[0])
    for moment, folder in plan:
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        if folder is not None:
            await asyncio.to_thread(host.serve, folder)
            did["rolled"] += 1
        elif isinstance(host, OnRay) and (replicas := host.of("ray::ServeReplica")):
            replicas[did["killed"] % len(replicas)].kill()
            did["killed"] += 1
    return dict(did)


async def without_proxy(host: OnRay, questions: Questions) -> dict[str, float]:
    """Seconds without an answer when HAProxy is killed, and when Ray's proxy actor is."""
    found = {}
    for name, what in (("haproxy", "haproxy "), ("manager", "ray::HAProxyManager"), ("proxy", "ray::ProxyActor")):
        if processes := host.of(what):
            for one in processes:
                one.kill()
            found[name] = await wait_until_answered(questions, 180)
            await asyncio.sleep(10)
    return found


async def soak(host: Process | OnRay, questions: Questions, versions: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    await wait_until_answered(questions, 180)
    bodies = [questions.body([place]) for place in range(len(questions.texts))]
    await closed_loop(URL, bodies, 8, 3)
    rate = SHARE * (await closed_loop(URL, bodies, 32, 10)).per_second
    warm, seen, slow, many = Seen(), Seen(), Seen(), Seen()
    await arrivals(questions, warm, rate, WARM_SECONDS, seed=1)
    before, seconds = memory(host), 60 * options.minutes
    until = time.perf_counter() + seconds
    tasks: list[Any] = [arrivals(questions, seen, rate, seconds), disturb(host, versions, seconds, options.kill_seconds)]
    if isinstance(host, Process):
        tasks += [leavers(questions, until), slow_ones(questions, slow, until), many_texts(questions, many, until)]
    _, did, *left = await asyncio.gather(*tasks)
    await asyncio.sleep(20)  # a replica that was killed last is there again
    found = {"rate": round(rate, 1), "did": did, "load": seen.summary(), "warm": warm.summary()}
    found["memory_mb"] = {"warm": before, "end": memory(host)}
    found["memory_ratio"] = round(sum(found["memory_mb"]["end"].values()) / sum(before.values()), 3)
    if isinstance(host, Process):
        return found | {"left": left[0], "slow": slow.summary(), "many_texts": many.summary()}
    return found | {"seconds_without": await without_proxy(host, questions)}


def noisy(folder: str) -> str:
    """The embedder of a folder with other weights."""
    embedder = Embedder.load(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        weight = embedder.model.get_input_embeddings().weight
        weight += 0.1 * weight.std() * torch.randn_like(weight)
    target = tempfile.mkdtemp()
    embedder.save(target)
    return target


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve_soak")
    parser.add_argument("--host", choices=["ray", "process"], default="ray")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kill-seconds", type=float, default=60)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(argv)
    first = os.path.abspath(model_folder())
    versions = [first, noisy(first)]
    embedders = {version_of(folder): Embedder.load(folder) for folder in versions}
    short, long = texts(next(iter(embedders.values())))
    chosen = [*short[:320], *long[:80]]
    questions = Questions(chosen, {version: embedder.encode(chosen) for version, embedder in embedders.items()})
    assert np.abs(np.subtract(*questions.expected.values())).max(axis=1).min() > 100 * TOLERANCE
    del embedders
    kinds: dict[str, Callable[[list[str], dict[str, str]], Process | OnRay]] = {"process": Process, "ray": OnRay}
    host = kinds[options.host](versions, dict(one.split("=", 1) for one in options.set))
    with ended(host):
        found = asyncio.run(soak(host, questions, versions, options))
    about = {"benchmark": "serve_soak", "host": options.host, "minutes": options.minutes, "environment": options.set}
    print(json.dumps(about | {"load_average": os.getloadavg()[0]} | found))


if __name__ == "__main__":
    main(sys.argv[1:])
