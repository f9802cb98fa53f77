"""Time to the first batch of a run that resumes at 10, 50 and 90 % of its rows, relative to a start at 0: ours and the peers'.

    python -m tests.benchmarks.resume [--rows 1000000] [--repeats 5] [--peer-repeats 3] [--only NAME]

All read the same Parquet files: 128 tokens a row, two languages, batches of 64. Each measurement is a new process. Its clock
starts when everything is imported (and Ray runs) and stops when the first batch is an int64 tensor, before anything is closed.
Files are in the page cache. The peers read the one column that they need, of all files as one list, which is less work than our
mixture and our checks; map-style datasets find their Arrow cache built. Each peer has no worker process, or two.

First each way runs without interruption, uncounted: it records the batch at each point, so that `exact` says whether a resumed
run has the same batches, and saves the state of the ways that have one. Peers begin at the first row; ours, whose feed has no
state, `LEAD` steps before each point. The last line is one JSON object: a ratio is our median at the point over our median at
0. The order's own figures are for a thousand times the rows.
"""

import argparse
import hashlib
import json
import os
import pickle
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data_pipeline.order.mixture import temperature_weights
from data_pipeline.order.row_order import RowOrder, Stream
from data_pipeline.shards import format, manifest
from tests.benchmarks import made_up

BATCH, LENGTH, VOCABULARY, SEED = 64, 128, 50_000, 3
LANGUAGES = {"el": 0.7, "en": 0.3}
"""Their shares of the rows."""
TEMPERATURE = 0.5
BUFFER = 10_000
"""Rows in the shuffle buffer of streaming peers, the size in their documentation."""
POINTS = (0, 10, 50, 90)
"""Per cent of the rows before the resume."""
SHARES = {point: f"vs_cold_{point}" for point in POINTS if point}
LEAD = 256
WORKERS = (0, 2)
LIMIT_SECONDS = 900
PACKAGES = ("ray", "torch", "datasets", "accelerate", "torchdata", "transformers", "pyarrow", "numpy")


@dataclass(frozen=True)
class Place:
    """Where the rows are, and how many."""

    folder: str
    rows: int

    def step(self, point: int) -> int:
        return self.rows // BATCH * point // 100

    def file(self, name: str) -> str:
        return os.path.join(self.folder, name)


# Ways to feed


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to feed batches, imported and started before the clock starts."""

    batches: Callable[[int, Any], Generator[Any, None, None]]
    """Yields the batches from a step on, given the state that was saved before it."""
    state: Callable[[], Any] = lambda: None
    """The state with which a checkpoint resumes after the last batch; None if the number of steps suffices."""
    close: Callable[[], None] = lambda: None
    lead: int = sys.maxsize
    """Steps before a point at which the run without interruption may begin."""


def ours(place: Place, ray_data: bool) -> Way:
    """Our feed, as in a job: Ray Data tasks read ahead, on a Ray that already runs; or this process reads."""
    import torch

    from data_pipeline.feed.rank_feed import OrderedRows, RankFeed

    stack = ExitStack()
    if ray_data:
        import ray

        from cluster.session import ray_session

        stack.enter_context(ray_session(workers=1, worker_cpus=1.0, address=None))
        ray.get(ray.remote(platform.node).remote())  # `init` returns before the first worker process is there

    def batches(step: int, _: Any) -> Generator[Any, None, None]:
        row_manifest = manifest.load(place.folder)
        tokens = {name: sum(shard.tokens for shard in shards) for name, shards in row_manifest.streams.items()}
        order = RowOrder(streams=row_manifest.order_streams(temperature_weights(tokens, TEMPERATURE)), batch=BATCH, seed=SEED)
        feed = RankFeed(
            rows=OrderedRows(order=order, folder=place.folder, manifest=row_manifest, micro_batch=None), rank=0, world=1
        )
        for table in (feed.read_with_ray if ray_data else feed.read_local)(step, place.step(100)):
            yield torch.from_numpy(format.token_ids(table["input_ids"], LENGTH))

    return Way(batches=batches, close=stack.close, lead=LEAD)


def huggingface(place: Place, streaming: bool) -> Callable[[], Any]:
    """Loads a dataset of Hugging Face's, whole or streamed."""
    import datasets

    datasets.disable_progress_bars()

    def load() -> Any:
        files = sorted(map(str, Path(place.folder).glob("*/*.parquet")))
        dataset = datasets.load_dataset("parquet", data_files=files, columns=["input_ids"], split="train", streaming=streaming)
        return dataset.shuffle(seed=SEED, buffer_size=BUFFER) if streaming else dataset

    return load


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All bytes at once: the fastest way from a peer's rows to a tensor."""
    import torch

    flat = np.frombuffer(b"".join(row["input_ids"] for row in rows), "<u2")
    return {"input_ids": torch.from_numpy(flat.reshape(len(rows), LENGTH).astype(np.int64))}


def trainer(place: Place, streaming: bool, workers: int) -> Way:
    """Hugging Face's Trainer with resume_from_checkpoint: its own loader, which skips the batches before the step."""
    import torch
    import transformers
    from accelerate import skip_first_batches

    load = huggingface(place, streaming)
    loading = {"per_device_train_batch_size": BATCH, "dataloader_num_workers": workers, "max_steps": place.step(100)}
    quiet = {"use_cpu": True, "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
    settings = transformers.TrainingArguments(output_dir=place.file("trainer"), seed=SEED, **loading, **quiet)
    peer = transformers.Trainer(torch.nn.Linear(1, 1), settings, data_collator=collate)

    def batches(step: int, _: Any) -> Generator[Any, None, None]:
        peer.train_dataset = load()
        loader = peer.get_train_dataloader()
        for batch in skip_first_batches(loader, step) if step else loader:
            yield batch["input_ids"]

    return Way(batches=batches)


def torchdata(place: Place, streaming: bool, workers: int) -> Way:
    """torchdata's StatefulDataLoader, which resumes from a state; a streamed dataset adds its own."""
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader

    load, loaders = huggingface(place, streaming), list[Any]()

    def batches(_: int, state: Any) -> Generator[Any, None, None]:
        order = {} if streaming else {"shuffle": True, "generator": torch.Generator().manual_seed(SEED)}
        loaders.append(StatefulDataLoader(load(), batch_size=BATCH, num_workers=workers, collate_fn=collate, **order))
        if state is not None:
            loaders[-1].load_state_dict(state)
        for batch in loaders[-1]:
            yield batch["input_ids"]

    return Way(batches=batches, state=lambda: loaders[-1].state_dict())


OURS: dict[str, Callable[[Place], Way]] = {"ours": partial(ours, ray_data=True), "ours_local": partial(ours, ray_data=False)}
PEERS: dict[str, Callable[..., Way]] = {
    "trainer_streaming": partial(trainer, streaming=True),
    "trainer_map": partial(trainer, streaming=False),
    "torchdata_streaming": partial(torchdata, streaming=True),
    "torchdata_map": partial(torchdata, streaming=False),
}
WAYS = OURS | {f"{name}:{workers}": partial(peer, workers=workers) for name, peer in PEERS.items() for workers in WORKERS}


# Work of a child process


def digest(batch: Any) -> str:
    assert batch.shape == (BATCH, LENGTH)
    return hashlib.sha256(batch.numpy().tobytes()).hexdigest()


def prepare(place: Place, name: str) -> None:
    """Runs without interruption; saves the state before each point and records the batch at it."""
    way, digests, at, steps_read, seconds = WAYS[name](place), dict[str, str](), 0, 0, 0.0
    batches = way.batches(0, None)
    for point in POINTS:
        step = place.step(point)
        if step - at > way.lead:
            at, batches = step - way.lead + 1, way.batches(step - way.lead, None)
            next(batches)
        start = time.perf_counter()
        for _ in range(at, step):
            next(batches)
        seconds, steps_read, at = seconds + time.perf_counter() - start, steps_read + step - at, step + 1
        Path(place.file(f"{name}-{point}.pickle")).write_bytes(pickle.dumps(way.state() if point else None))
        digests[str(point)] = digest(next(batches))
    batches.close()
    leave(way, {"batches": digests, "rows_per_second": round(steps_read * BATCH / seconds)})


def first(place: Place, name: str, point: int) -> None:
    """Seconds to the first batch at a point, and that batch."""
    way = WAYS[name](place)
    start = time.perf_counter()
    state = pickle.loads(Path(place.file(f"{name}-{point}.pickle")).read_bytes())
    batches = way.batches(place.step(point), state)
    batch = next(batches)
    seconds = time.perf_counter() - start
    batches.close()  # a feed that still asks Ray when Ray ends takes the process with it
    leave(way, {"seconds": seconds, "batch": digest(batch)})


def leave(way: Way, record: dict[str, Any]) -> None:
    """Prints the record and exits at once: the peers' readers and workers would take seconds to end by themselves."""
    print(json.dumps(record), flush=True)
    way.close()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(0)


def lookups(place: Place, size: int, batches: int) -> None:
    """Random slots of an order of a thousand times the rows, `size` at once: how many a second, and the memory at the peak."""

    def row_order(rows: int) -> RowOrder:
        streams = tuple(Stream(name=n, rows=round(rows * share), weight=share**TEMPERATURE) for n, share in LANGUAGES.items())
        return RowOrder(streams=streams, batch=BATCH, seed=SEED)

    rng, rows = np.random.default_rng(SEED), 1000 * place.rows
    row_order(1000).lookup(rng.integers(0, 1000, 10))  # first calls are not the order's memory
    before = psutil.Process().memory_info().rss
    order, seconds = row_order(rows), list[float]()
    for _ in range(batches):
        slots = rng.integers(0, rows, size)
        start = time.perf_counter()
        order.lookup(slots)
        seconds.append(time.perf_counter() - start)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before / 2**20
    print(json.dumps({"rows": rows, "per_second": round(size / statistics.median(seconds)), "extra_mib": round(extra, 1)}))


CHILDREN: dict[str, Callable[..., None]] = {"prepare": prepare, "first": first, "lookups": lookups}


def in_child(place: Place, function: str, *arguments: Any) -> dict[str, Any]:
    """Runs a function in a new process; returns its record, or the reason why there is none."""
    record = json.dumps([function, place.folder, place.rows, *arguments])
    command = [sys.executable, "-m", "tests.benchmarks.resume", "--child", record]
    # All its files are removed with the folder. Ray's sockets need a short path.
    variables = {"HF_HOME": place.file("hf"), "RAY_TMPDIR": place.folder, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        process = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"cannot_run": f"more than {LIMIT_SECONDS} seconds"}
    if process.returncode:
        return {"cannot_run": (process.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(process.stdout.strip().splitlines()[-1])


# Measuring and reporting


def summary(expected: dict[str, Any], runs_by_point: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median, least and most seconds at each point, each resumed point's share of the cold start, and whether it is exact."""
    record: dict[str, Any] = {"rows_per_second": expected["rows_per_second"]}
    for point, runs in runs_by_point.items():
        if failed := [run["cannot_run"] for run in runs if "cannot_run" in run]:
            return {"cannot_run": failed[0], "at": point}
        seconds = [round(run["seconds"], 4) for run in runs]
        record[str(point)] = {"seconds": round(statistics.median(seconds), 4), "min": min(seconds), "max": max(seconds)}
        record[str(point)]["exact"] = all(run["batch"] == expected["batches"][str(point)] for run in runs)
    return record | {share: round(record[str(p)]["seconds"] / record["0"]["seconds"], 3) for p, share in SHARES.items()}


def compare(place: Place, names: list[str], repeats: int, peer_repeats: int) -> dict[str, dict[str, Any]]:
    """Measures the ways in turns, and the points in alternating order, so that all meet the same load."""
    ready = dict[str, dict[str, Any]]()
    for name in names:
        ready[name] = in_child(place, "prepare", name)
        print(f"prepared {name}: {ready[name].get('cannot_run', 'done')}", file=sys.stderr, flush=True)
    runs = {name: {point: list[dict[str, Any]]() for point in POINTS} for name in names if "batches" in ready[name]}
    for repeat in range(repeats):
        for name in [name for name in runs if name in OURS or repeat < peer_repeats]:
            for point in POINTS if repeat % 2 == 0 else POINTS[::-1]:
                runs[name][point].append(in_child(place, "first", name, point))
            last = [runs[name][point][-1].get("seconds", float("nan")) for point in POINTS]
            print(f"{repeat + 1}/{repeats} {name:22}", *(f"{one:8.2f} s" for one in last), file=sys.stderr, flush=True)
    return {name: summary(ready[name], runs[name]) if name in runs else ready[name] for name in names}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.resume")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=3)
    parser.add_argument("--only", choices=[*OURS, *PEERS], help="one way instead of all; without the order's figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        function, folder, rows, *others = json.loads(options.child)
        return CHILDREN[function](Place(folder, rows), *others)
    figures: dict[str, Any] = {name: getattr(options, name) for name in ("rows", "repeats", "peer_repeats")}
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    figures["machine"] = {"cores": os.cpu_count(), "load_at_start": os.getloadavg()[0], "versions": versions}
    with tempfile.TemporaryDirectory(prefix="resume-", ignore_cleanup_errors=True) as folder:
        place = Place(folder, options.rows)
        if not options.only:
            figures["order_lookups"] = in_child(place, "lookups", 1 << 20, 7)
            figures["order_lookups_64_at_once"] = in_child(place, "lookups", 64, 2000)
        counts = {name: round(place.rows * share) for name, share in LANGUAGES.items()}
        made_up.rows(place.folder, counts, LENGTH, VOCABULARY, SEED)
        names = [name for name in WAYS if options.only in (None, name.partition(":")[0])]
        results = compare(place, names, options.repeats, options.peer_repeats)
    ratios = {share: results.get("ours", {}).get(share) for share in SHARES.values()}
    print(json.dumps({"ratios": ratios, "figures": figures | results}))


if __name__ == "__main__":
    main(sys.argv[1:])
