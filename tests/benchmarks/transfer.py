"""Our transfer kernels against the peers' own functions, on the same arrays: CPU time, its spread, and memory.

    python -m tests.benchmarks.transfer [--repeats 5] [--threads 1] [--scale 1.0] [--only NAME]
    python -m tests.benchmarks.transfer --huge [--scale 1.0]

Both sides go from vectors to finished rows, in one process, in turns, after a run of each that does not count: so numba has
compiled, and both meet the same caches and the same load. CPU time is that of all threads; with one thread no side pays for
threads that wait. Peak memory is measured in a new process for each side. The last line is one JSON object.

`--huge` runs ours alone, on Ray and within 4 GiB, for two vocabularies of 250,000.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any, Protocol

import numpy as np
import psutil
import threadpoolctl
import torch
from numpy.typing import NDArray

from trainer.transfer import apply
from trainer.transfer.factorise import factorise
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.search.neighbours import top_softmax, top_sparsemax, unit_rows

AUXILIARY, WIDTH = 300, 768
NEIGHBOURS, TEMPERATURE = 10, 0.1
RANK = 100
SMALL = 0.05
"""The scale of a run that only warms up."""
Rows = NDArray[np.floating]


def normal(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def mix_rows(columns: NDArray[np.int64], weights: NDArray[np.float32], old: torch.Tensor) -> Rows:
    """W @ E through a plan, as the transfer job does it."""
    used = weights != 0
    size = len(columns)
    plan = TransferPlan(
        indptr=np.concatenate([[0], np.cumsum(used.sum(axis=1))]),
        indices=columns[used].astype(np.int32),
        weights=weights[used],
        provenance=np.full(size, Provenance.NEIGHBOURS, np.uint8),
        keys=np.zeros(size, np.uint64),
        group=np.zeros(size, np.uint16),
        by=np.ones(size, np.uint8),
        source_group=np.zeros(len(old), np.uint16),
        source_rows=len(old),
        seed=0,
        method="benchmark",
    )
    return apply.embeddings(plan, old).numpy()


class Case(Protocol):
    """Arrays of a size, and two ways from them to the same rows."""

    def __init__(self, scale: float) -> None: ...
    def ours(self) -> Rows: ...
    def theirs(self) -> Rows: ...


class Focus:
    """Sparse mixtures: 20,000 new tokens of 10,000 shared ones."""

    def __init__(self, scale: float) -> None:
        self.new, self.shared = normal(int(20_000 * scale), AUXILIARY, 1), normal(int(10_000 * scale), AUXILIARY, 2)
        self.source_ids = normal(len(self.shared), WIDTH, 3)

    def ours(self) -> Rows:
        return mix_rows(*top_sparsemax(unit_rows(self.new), unit_rows(self.shared)), self.source_ids)

    def theirs(self) -> Rows:
        from deepfocus.focus import focus_additional_token_initialization
        from deepfocus.vocab_helper import NewToken, OverlappingToken, TokenClass

        token = [TokenClass(str(number), number, "", "", "", "", False) for number in range(len(self.new))]
        new = {str(n): NewToken(token[n], vector) for n, vector in enumerate(self.new.numpy())}
        shared = {
            str(n): OverlappingToken([], token[n], row, vector)
            for n, (row, vector) in enumerate(zip(self.source_ids, self.shared.numpy(), strict=True))
        }
        return focus_additional_token_initialization(shared, new, torch.zeros(len(new), WIDTH)).numpy()


class Vocabulary:
    """The part of a tokenizer that `wechsel` uses, and faster."""

    def __init__(self, size: int) -> None:
        self.tokens = [f"token{number}" for number in range(size)]
        self.vocab = {token: number for number, token in enumerate(self.tokens)}
        self.special_tokens_map: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return [self.tokens[number] for number in ids] if np.ndim(ids) else self.tokens[ids]


class Wechsel:
    """The ten nearest of 20,000 old tokens for each of 20,000 new ones.

    The peer gets single precision, which is its best: the vectors that it looks up itself are in double precision, and take
    it longer.
    """

    dtype = np.float32

    def __init__(self, scale: float) -> None:
        size = int(20_000 * scale)
        self.new, self.keys, self.source_ids = normal(size, AUXILIARY, 1), normal(size, AUXILIARY, 2), normal(size, WIDTH, 3)
        self.vocabulary = Vocabulary(size)

    def ours(self) -> Rows:
        return mix_rows(*top_softmax(unit_rows(self.new), unit_rows(self.keys), NEIGHBOURS, TEMPERATURE), self.source_ids)

    def theirs(self) -> Rows:
        import wechsel

        vectors = self.keys.numpy().astype(self.dtype), self.new.numpy().astype(self.dtype)
        both = self.vocabulary, self.vocabulary
        rows, _, _ = wechsel.create_target_embeddings(
            *vectors, *both, self.source_ids.numpy(), NEIGHBOURS, TEMPERATURE, verbose=False
        )
        return rows


class WechselDouble(Wechsel):
    """The same in the precision in which the peer looks vectors up."""

    dtype = np.float64


class Ofa:
    """The 100 best coordinates of 20,000 rows; the product of the factors stands for them, since their signs are free."""

    def __init__(self, scale: float) -> None:
        decay = torch.logspace(0, -1, WIDTH)
        self.source_ids = normal(int(20_000 * scale), WIDTH, 1) * decay

    def ours(self) -> Rows:
        coordinates, primitives = factorise(self.source_ids, RANK, "paper")
        return coordinates.numpy() @ primitives.numpy()

    def theirs(self) -> Rows:
        u, s, vt = np.linalg.svd(self.source_ids.numpy(), full_matrices=False)
        return u[:, :RANK] @ (s[:RANK, None] * vt[:RANK])


CASES: dict[str, type[Case]] = {
    "focus_vs_deepfocus": Focus,
    "wechsel_vs_wechsel": Wechsel,
    "wechsel_vs_wechsel_double": WechselDouble,
    "ofa_vs_numpy_svd": Ofa,
}


# Measuring


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Limits torch and every BLAS to so many threads."""
    torch.set_num_threads(count)
    with threadpoolctl.threadpool_limits(count):
        yield


def time_run(run: Callable[[], Rows]) -> tuple[float, float]:
    """Seconds of CPU and seconds on the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def times(name: str, scale: float, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of both sides in turns, and the largest difference between their rows."""
    with threads_of(threads):
        case = CASES[name](scale)
        sides = {"ours": case.ours, "theirs": case.theirs}
        rows = {side: run() for side, run in sides.items()}
        result: dict[str, Any] = {"difference": float(np.abs(rows["ours"] - rows["theirs"]).max())}
        del rows
        timings: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, run in sides.items():
                timings[side].append(time_run(run))
    for side, pairs in timings.items():
        cpu = [pair[0] for pair in pairs]
        wall = statistics.median(pair[1] for pair in pairs)
        result[side] = {"seconds": statistics.median(cpu), "min": min(cpu), "max": max(cpu), "wall": wall}
    return result


def memory(name: str, scale: float, side: str, threads: int) -> dict[str, float]:
    """MiB at the peak of one run, and the increase over the memory before it."""
    with threads_of(threads):
        getattr(CASES[name](min(scale, SMALL)), side)()
        case = CASES[name](scale)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = _status("VmRSS")
        getattr(case, side)()
    return {"peak_mib": _status("VmHWM"), "extra_mib": _status("VmHWM") - before}


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return round(int(line.split()[1]) / 1024, 1)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a new process, and returns its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    result = in_child(times, name, options.scale, options.repeats, options.threads)
    for side in ("ours", "theirs"):
        result[side] |= in_child(memory, name, options.scale, side, options.threads)
    ours, theirs = result["ours"], result["theirs"]
    result["ratio"] = theirs["seconds"] / ours["seconds"]
    result["ratio_min"], result["ratio_max"] = theirs["min"] / ours["max"], theirs["max"] / ours["min"]
    return result


# A vocabulary that does not fit


def huge(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds on the clock and memory of WECHSEL's kernel on Ray, for two vocabularies of 250,000."""
    from cluster.ray_executor import RayExecutor
    from cluster.session import ray_session

    size = int(250_000 * options.scale)
    torch.set_num_threads(options.threads)
    with ray_session(workers=1, worker_cpus=1.0, address=None), peak_memory() as peak:
        new, keys = unit_rows(normal(size, AUXILIARY, 1)), unit_rows(normal(size, AUXILIARY, 2))
        spread = RayExecutor(options.memory << 30, note=lambda text: print(text, file=sys.stderr, flush=True))
        start = time.perf_counter()
        _, weights = top_softmax(new, keys, NEIGHBOURS, TEMPERATURE, spread)
        wall = time.perf_counter() - start
    sums = float(weights.sum(axis=1).mean())
    allowed = options.memory * 1024.0
    return {"tokens": size, "wall": wall, "allowed_mib": allowed, "row_sum": sums, **peak}


@contextmanager
def peak_memory(every: float = 0.5) -> Iterator[dict[str, float]]:
    """Samples the peak memory of this process and Ray's workers, without and with the rest of Ray, in MiB.

    Each process counts its share of common pages (PSS), so the object store is counted once.
    """
    peak = {"peak_mib": 0.0, "peak_with_ray_mib": 0.0}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(every):
            sizes = {process.pid: _proportional(process) for process in _family()}
            workers = sum(size for size, is_ours in sizes.values() if is_ours)
            peak["peak_mib"] = max(peak["peak_mib"], workers)
            peak["peak_with_ray_mib"] = max(peak["peak_with_ray_mib"], sum(size for size, _ in sizes.values()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _family() -> list[psutil.Process]:
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def _proportional(process: psutil.Process) -> tuple[float, bool]:
    """MiB of a process, and whether it is this one or one of Ray's workers; 0 if it has just ended."""
    try:
        is_ours = process.pid == os.getpid() or process.cmdline()[:1][0].startswith("ray::")
        return process.memory_full_info().pss / 2**20, is_ours
    except (psutil.Error, IndexError, FileNotFoundError):
        return 0.0, False


# Reporting


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    peers = {name: version(name) for name in ("torch", "numpy", "deepfocus", "wechsel", "numba")}
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": peers,
    }


def line_of(name: str, result: dict[str, Any]) -> str:
    sides = [
        f"{one['seconds']:8.2f} ({one['min']:.2f} to {one['max']:.2f}) s {one['extra_mib']:7.0f} MiB"
        for one in (result["theirs"], result["ours"])
    ]
    return f"{name:26} {result['ratio']:6.1f}x   theirs {sides[0]}   ours {sides[1]}   apart {result['difference']:.0e}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transfer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of tokens; below 1 for a try")
    parser.add_argument("--only", choices=sorted(CASES))
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--memory", type=int, default=4, help="GiB allowed in --huge")
    options = parser.parse_args(arguments)
    os.environ["TQDM_DISABLE"] = "1"  # read by the processes that measure, before they import the peers
    facts = {"machine": machine(), "threads": options.threads, "repeats": options.repeats, "scale": options.scale}
    if options.huge:
        print(json.dumps({"huge": huge(options), "figures": facts}))
        return
    results = {}
    for name in [options.only] if options.only else CASES:
        results[name] = compare(name, options)
        print(line_of(name, results[name]), file=sys.stderr, flush=True)
    print(json.dumps({"ratios": {name: round(one["ratio"], 2) for name, one in results.items()}, "figures": results | facts}))


if __name__ == "__main__":
    main(sys.argv[1:])
