"""Hostile clients of the endpoint, at the whole size: what they get, and what the others notice.

    python -m tests.benchmarks.serve_fuzz [--bodies 10000] [--slow 300] [--idle 1000] [--unread 50]

One process without Ray serves all-MiniLM-L6-v2. A proper client asks for a short text again and again, alone and then beside

fuzz      seeded bodies (tests/serve/hostile.py) on 8 connections; an answer of status 5xx, or none within 60 s, ends the run
slow      clients that send the half of a body and wait: the seconds until all of them have got 408
idle      connections that say nothing
unread    clients that send requests for 64 texts one after another and read nothing, for 20 s

Memory is the server's unshared one behind each part. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.embed import model_folder
from tests.benchmarks.serve import _wait
from tests.serve import hostile

PORT = 8342
URL = f"http://127.0.0.1:{PORT}/v1"
PATH = "/v1/embeddings"
BODY = json.dumps({"model": "embedder", "input": "click the button"}).encode()
MANY = json.dumps({"model": "embedder", "input": ["click the button"] * 64}).encode()
CONNECTIONS = 8
UNREAD_SECONDS = 20.0


async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 26)


async def beside(others: Awaitable[Any]) -> tuple[Any, dict[str, Any]]:
    """What the others come to, and what a proper client saw meanwhile: statuses, and milliseconds of an answer."""
    running = asyncio.ensure_future(others)
    reader, writer = await opened()
    statuses, times = Counter[str](), list[float]()
    while not running.done():
        began = time.perf_counter()
        writer.write(hostile.head(PATH, len(BODY)) + BODY)
        status, _, _ = await hostile.answer(reader)
        times.append(1000 * (time.perf_counter() - began))
        statuses[str(status)] += 1
        await asyncio.sleep(0.02)
    writer.close()
    p50, p99 = (round(float(value), 1) for value in np.percentile(times, [50, 99]))
    return await running, {"statuses": dict(statuses), "p50": p50, "p99": p99, "longest": round(max(times), 1)}


async def fuzz(count: int) -> dict[str, int]:
    found = await asyncio.gather(*[hostile.fuzz(URL, seed, count // CONNECTIONS, 60) for seed in range(CONNECTIONS)])
    return dict(sum((Counter(statuses) for statuses in found), Counter()))


async def slow(count: int) -> dict[str, Any]:
    """Clients that stop in the middle of a body."""
    began, statuses = time.perf_counter(), Counter[str]()

    async def one() -> None:
        reader, writer = await opened()
        writer.write(hostile.head(PATH, len(BODY)) + BODY[: len(BODY) // 2])
        statuses[str((await hostile.answer(reader))[0])] += 1
        writer.close()

    await asyncio.gather(*[one() for _ in range(count)])
    return {"statuses": dict(statuses), "seconds": round(time.perf_counter() - began, 1)}


async def idle(count: int) -> dict[str, int]:
    connections = [await opened() for _ in range(count)]
    await asyncio.sleep(10)
    for _, writer in connections:
        writer.close()
    return {"connections": len(connections)}


async def unread(count: int) -> dict[str, int]:
    """Clients that read nothing; the bytes that each of them could send, at most."""
    longest = 0

    async def one() -> None:
        nonlocal longest
        reader, writer = await opened()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                while True:
                    writer.write(hostile.head(PATH, len(MANY)) + MANY)
                    await writer.drain()
                    sent += len(MANY)
        except OSError:
            longest = max(longest, sent)
        writer.transport.abort()

    await asyncio.gather(*[one() for _ in range(count)])
    return {"connections": count, "most_bytes_sent": longest}


async def run(options: argparse.Namespace, server: psutil.Process) -> dict[str, Any]:
    parts = {
        "alone": asyncio.sleep(5),
        "fuzz": fuzz(options.bodies),
        "slow": slow(options.slow),
        "idle": idle(options.idle),
        "unread": unread(options.unread),
        "alone_again": asyncio.sleep(5),
    }
    found = {}
    for name, part in parts.items():
        theirs, ours = await beside(part)
        found[name] = {"got": theirs, "proper_client": ours, "memory_mb": round(server.memory_full_info().uss / 1e6)}
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve_fuzz")
    for name, default in (("bodies", 10_000), ("slow", 300), ("idle", 1000), ("unread", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    config = Path(tempfile.mkdtemp()) / "serve.yaml"
    config.write_text("output: runs/fuzz\n")
    settings = {"model": os.path.abspath(model_folder()), "port": PORT, "cpus_per_replica": 1}
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", str(config), *(f"serve.{key}={v}" for key, v in settings.items())]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        )
        try:
            _wait(f"http://127.0.0.1:{PORT}/health", process)
            found = asyncio.run(run(options, psutil.Process(process.pid)))
        finally:
            process.terminate()
            process.wait(60)
    print(json.dumps({"benchmark": "serve_fuzz", "load_average": os.getloadavg()[0]} | found))


if __name__ == "__main__":
    main(sys.argv[1:])
