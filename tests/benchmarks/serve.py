"""The endpoint under load, beside infinity: requests a second, times, start, and memory, on a CPU.

    python -m tests.benchmarks.serve [--infinity FOLDER] [--fastapi FOLDER] [--repeats 2] [--seconds 5] [--sides SIDE ...]

All servers hold the same all-MiniLM-L6-v2 in fp32, with one thread for the model, and are asked over loopback by the same
clients (cluster/serve/load.py). `infinity` is infinity-emb 0.0.78 with BetterTransformer, and `fastapi` sentence-transformers
6.2 in the threads of a plain FastAPI; both run in environments of their own. `scion` is one process; `scion-ray` is a replica
on Ray Serve, behind its HAProxy; both also offer vectors behind three of the six layers. Texts are titles and paragraphs of the
sample.

short, mixed   1, 8, 32 and 128 clients that each wait for an answer: texts of 6 to 10 tokens; a fifth of them of 120
many           1 and 4 clients that send 64 mixed texts at once
poisson        random arrivals of mixed texts at 50 and 80 % of what infinity served to 32 clients
neighbour      short requests of one client while another sends 1,024 mixed texts, again and again; and without that one
half           the loads of 32 clients, and 64 texts of one client, by three of the six layers (`layer`; ours only)

The sides take turns. The last line is one JSON object: medians for each side and load, and the ratios of requests a second to
infinity's.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

from cluster.serve.load import Measured, closed_loop, open_loop
from tests.benchmarks.embed import model_folder
from trainer.embedder import Embedder

CLIENTS = (1, 8, 32, 128)
HALF = ("short, 32", "mixed, 32", "many, 1")
LONG_SHARE, LONG = 0.2, 120
WAIT_SECONDS = 120
SHORT_TOKENS = (6, 10)
NAME = "embedder"
ON_RAY = """
import signal, sys
from cluster.session import ray_session
from cluster.serve.app import serve_on_ray
from cluster.serve.config import ServeConfig

model, name, port = sys.argv[1:]
with ray_session(workers=1, worker_cpus=1.0, address=None):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with serve_on_ray(ServeConfig(model=model, name=name, port=int(port))):
        signal.pause()
"""
"""What `scion serve` does where RAY_ADDRESS is set, on a Ray of its own."""
ON_FASTAPI = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer(sys.argv[1], device="cpu")
app = FastAPI()

class Body(BaseModel):
    model: str
    input: str | list[str]

@app.get("/health")
def health():
    return {}

@app.post("/v1/embeddings")
def embeddings(body: Body):
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = encoder.encode(texts, show_progress_bar=False)
    data = [{"object": "embedding", "index": place, "embedding": row.tolist()} for place, row in enumerate(vectors)]
    return {"object": "list", "model": body.model, "data": data}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def texts(embedder: Embedder) -> tuple[list[str], list[str]]:
    """Short texts, and long ones of `LONG` tokens made of paragraphs."""
    table = pq.read_table("data_pipeline/sources/sample/pairs.parquet", columns=["anchor"])
    given = list(dict.fromkeys(table["anchor"].to_pylist()))
    counts = [len(ids) for ids in embedder.tokenize(given)]
    short = [text for text, count in zip(given, counts, strict=True) if SHORT_TOKENS[0] <= count <= SHORT_TOKENS[1]]
    words = " ".join(text for text, count in zip(given, counts, strict=True) if count > 20).split()
    pieces = [" ".join(words[start : start + 60]) for start in range(0, 60 * 400, 60)]
    tokenizer = embedder.tokenizer
    ids = [tokenizer(piece, add_special_tokens=False)["input_ids"][: LONG - 2] for piece in pieces]
    return short[:400], [tokenizer.decode(row) for row in ids if len(row) == LONG - 2]


def bodies(embedder: Embedder) -> dict[str, list[bytes]]:
    """The requests of each kind of load."""
    rng = np.random.default_rng(0)
    short, long = texts(embedder)
    mixed = [str(rng.choice(long)) if rng.random() < LONG_SHARE else str(rng.choice(short)) for _ in range(1024)]
    inputs: dict[str, Sequence[Any]] = {
        "short": short,
        "mixed": mixed[:400],
        "many": [mixed[start : start + 64] for start in range(0, 1024, 64)],
        "neighbour": [mixed],
    }
    return {kind: [json.dumps({"model": NAME, "input": one}).encode() for one in all_] for kind, all_ in inputs.items()}


def command(side: str, port: int, peers: dict[str, str], folder: str) -> list[str]:
    if side == "infinity":
        named = ["--model-id", folder, "--served-model-name", NAME, "--port", str(port)]
        kind = ["--device", "cpu", "--engine", "torch", "--dtype", "float32", "--bettertransformer"]
        return [f"{peers[side]}/bin/infinity_emb", "v2", *named, *kind]
    if side == "fastapi":
        return [f"{peers[side]}/bin/python", "-c", ON_FASTAPI, folder, str(port)]
    if side == "scion-ray":
        return [sys.executable, "-c", ON_RAY, folder, NAME, str(port)]
    config = Path(tempfile.mkdtemp()) / "serve.yaml"
    config.write_text("output: runs/bench-serve\n")
    settings = {"model": folder, "port": port, "name": NAME, "cpus_per_replica": 1, "max_inputs": 2048}
    return [sys.executable, "-m", "ray_jobs.cli", "serve", str(config), *(f"serve.{key}={v}" for key, v in settings.items())]


@contextmanager
def server(side: str, peers: dict[str, str], folder: str) -> Iterator[tuple[str, dict[str, float]]]:
    """A running server: the URL of its embeddings, its seconds to start, and its memory."""
    port = 8200 + sum(map(ord, side)) % 100
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(side, port, peers, folder), stdout=log, stderr=log, env=environment)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            facts = {"start_seconds": round(time.perf_counter() - began, 1), "idle_mb": _memory(process)}
            yield f"http://127.0.0.1:{port}/{'' if side == 'infinity' else 'v1/'}embeddings", facts
            facts["loaded_mb"] = _memory(process)
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(WAIT_SECONDS * 20):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}") from None
            time.sleep(0.05)
    raise SystemExit(f"no answer from {url} within {WAIT_SECONDS} s")


def _memory(process: subprocess.Popen[bytes]) -> float:
    """Unshared memory of the server's processes, in MB; Ray's are among them."""
    parent = psutil.Process(process.pid)
    return round(sum(one.memory_full_info().uss for one in (parent, *parent.children(recursive=True))) / 1e6)


async def measure(url: str, sent: dict[str, list[bytes]], rates: Sequence[float], seconds: float) -> dict[str, Measured]:
    """One round of all loads."""
    await closed_loop(url, sent["mixed"], 8, 2)  # a warm-up
    found = {}
    for kind in ("short", "mixed"):
        for clients in CLIENTS:
            found[f"{kind}, {clients}"] = await closed_loop(url, sent[kind], clients, seconds)
    for clients in (1, 4):
        found[f"many, {clients}"] = await closed_loop(url, sent["many"], clients, 2 * seconds)
    for share, rate in zip((50, 80), rates, strict=False):
        found[f"poisson, {share} %"] = await open_loop(url, sent["mixed"], rate, 2 * seconds)
    found["neighbour, alone"] = await closed_loop(url, sent["short"], 1, seconds)
    busy, _ = await asyncio.gather(
        closed_loop(url, sent["short"], 1, 2 * seconds), closed_loop(url, sent["neighbour"], 1, 2 * seconds)
    )
    found["neighbour, busy"] = busy
    if "half short" in sent:
        for load in HALF:
            kind, _, clients = load.partition(", ")
            found[f"half, {load}"] = await closed_loop(url, sent[f"half {kind}"], int(clients), seconds)
    return found


def with_exit(folder: str, target: str) -> str:
    """The embedder of a folder, which also offers vectors behind half of its layers."""
    embedder = Embedder.load(folder)
    half = embedder.model.config.num_hidden_layers // 2
    Embedder(embedder.model, embedder.tokenizer, replace(embedder.spec, layers=(half,))).save(target)
    return target


def at_half_depth(sent: dict[str, list[bytes]], layer: int) -> dict[str, list[bytes]]:
    """The requests, and the same for vectors behind so many layers."""
    half = {
        f"half {kind}": [json.dumps(json.loads(body) | {"layer": layer}).encode() for body in all_]
        for kind, all_ in sent.items()
    }
    return sent | half


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve")
    parser.add_argument("--infinity", default=".venv-infinity")
    parser.add_argument("--fastapi", default=".venv-oracle")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--sides", nargs="+", default=["infinity", "fastapi", "scion", "scion-ray"])
    options = parser.parse_args(argv)
    peers = {"infinity": options.infinity, "fastapi": options.fastapi}
    folder = os.path.abspath(model_folder())
    own = with_exit(folder, tempfile.mkdtemp())
    sent = bodies(Embedder.load(folder))
    of_ours = at_half_depth(sent, Embedder.load(own).spec.layers[0])
    rounds: dict[str, list[dict[str, Measured]]] = {side: [] for side in options.sides}
    facts: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    rates: list[float] = []
    for _ in range(options.repeats):
        for side in options.sides:
            is_peer = side in peers
            with server(side, peers, folder if is_peer else own) as (url, seen):
                rounds[side].append(asyncio.run(measure(url, sent if is_peer else of_ours, rates, options.seconds)))
            facts[side].append(seen)
            if not rates:
                rates = [share * rounds[side][0]["mixed, 32"].per_second for share in (0.5, 0.8)]
            print(side, seen, {load: asdict(one) for load, one in rounds[side][-1].items()}, file=sys.stderr, flush=True)
    sides = {side: summary(rounds[side], facts[side]) for side in options.sides}
    print(json.dumps({"benchmark": "serve", "load_at_start": os.getloadavg()[0], "sides": sides, "ratios": ratios(sides)}))


def summary(rounds: list[dict[str, Measured]], facts: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the rounds; the first round of the first side has no Poisson arrivals."""
    loads: dict[str, Any] = {}
    for load in rounds[-1]:
        values = [asdict(one[load]) for one in rounds if load in one]
        loads[load] = {key: round(statistics.median(value[key] for value in values), 2) for key in values[0]}
    return {"loads": loads} | {key: statistics.median(one[key] for one in facts) for key in facts[0]}


def ratios(sides: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Requests a second by infinity's, its 95th percentiles by ours, and requests a second at half depth by those at full."""
    peer = sides.get("infinity", {"loads": {}})["loads"]
    found: dict[str, dict[str, float]] = {}
    for side in (name for name in sides if name != "infinity"):
        own = sides[side]["loads"]
        found[side] = {load: round(own[load]["per_second"] / peer[load]["per_second"], 2) for load in own if load in peer}
        found[side] |= {
            f"half, {load}": round(own[f"half, {load}"]["per_second"] / own[load]["per_second"], 2)
            for load in HALF
            if f"half, {load}" in own
        }
        found[side] |= {f"p95, {load}": round(peer[load]["p95"] / own[load]["p95"], 2) for load in own if load in peer}
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
