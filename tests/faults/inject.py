"""The faults: what a machine, a user or a disk does to a run from outside. Each function returns after the fault."""

import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from data_pipeline.artifacts import storage
from tests.faults.rig import Run

_DRAIN_SECONDS = 30
STOPPED = 75


def kill_worker(run: Run, draw: random.Random) -> None:
    """Kills a worker, as the kernel does when memory runs out."""
    draw.choice(run.rig.workers()).kill()


def hang_worker(run: Run, draw: random.Random) -> None:
    """Stops a worker without ending it. The run must notice by itself."""
    before, worker = len(run.log()), draw.choice(run.rig.workers())
    worker.send_signal(signal.SIGSTOP)
    run.wait(lambda: len(run.log()) > before, "a new attempt after a hang")


def lose_node(run: Run, draw: random.Random) -> None:
    """A machine dies with all its processes; another replaces it a little later."""
    run.rig.remove_node(run.rig.node_of(draw.choice(run.rig.workers())))
    time.sleep(draw.uniform(5, 20))
    run.rig.add_node()


def drain_node(run: Run, draw: random.Random) -> None:
    """A machine is preempted with notice. The checkpoint that the run saves in time must not be lost."""
    worker = draw.choice(run.rig.workers())
    node, before = run.rig.node_of(worker), len(run.entries("preempted"))
    command = [
        str(Path(sys.executable).parent / "ray"),
        "drain-node",
        "--address",
        run.rig.cluster.address,
        "--node-id",
        run.rig.node_id(node),
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "test",
        "--deadline-remaining-seconds",
        str(_DRAIN_SECONDS),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    run.wait(lambda: len(run.entries("preempted")) > before, "a checkpoint before the node goes", _DRAIN_SECONDS)
    at = run.entries("preempted")[-1]["next_step"]
    run.wait(lambda: any(e["next_step"] == at for e in run.entries("checkpoint")), "its commit", _DRAIN_SECONDS)
    run.rig.remove_node(node)
    run.rig.add_node()


def stop_driver(run: Run, draw: random.Random) -> None:
    """`ray job stop`: the run saves and ends, and its driver is started again."""
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    code = run.wait_for_exit(120)
    assert code == STOPPED, f"the driver ended with {code} after SIGTERM: {run.stderr}"
    assert "the same command resumes" in run.stderr
    run.start()


def kill_driver(run: Run, draw: random.Random) -> None:
    """Kills the driver and starts it again."""
    assert run.process is not None
    run.process.kill()
    run.wait_for_exit()
    run.start()


def fill_disk(run: Run, draw: random.Random) -> None:
    """Lets a worker write only a few bytes to any file, until a checkpoint has failed."""
    missed, worker = len(run.entries("missed")), limit_file_size(run)
    try:
        run.wait(lambda: len(run.entries("missed")) > missed, "a checkpoint that fails")
    finally:
        if worker.is_running():
            worker.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, worker.rlimit(resource.RLIMIT_FSIZE)[1]))


def limit_file_size(run: Run) -> psutil.Process:
    """Limits the files of a worker to a few bytes, and returns it. Not the first worker, which writes the log."""
    first = run.first_rank()
    worker = next(worker for worker in run.rig.workers() if worker.pid != first)
    worker.rlimit(resource.RLIMIT_FSIZE, (2000, worker.rlimit(resource.RLIMIT_FSIZE)[1]))
    return worker


def flip_checkpoint(run: Run, draw: random.Random) -> None:
    """Flips a bit of the newest checkpoint and kills a worker, which forces a restart from it."""
    _spoil(run, draw, lambda content: _flip_bit(content, draw))


def tear_checkpoint(run: Run, draw: random.Random) -> None:
    """Truncates a file of the newest checkpoint and kills a worker."""
    _spoil(run, draw, lambda content: content[: draw.randrange(len(content))])


def flip_weights(run: Run, draw: random.Random) -> None:
    """As `flip_checkpoint`, in the middle of the largest file: weights, which load with any content."""
    _spoil(run, draw, lambda content: _invert_bytes(content, len(content) // 2), largest=True)


def _spoil(run: Run, draw: random.Random, change: Callable[[bytes], bytes], largest: bool = False) -> None:
    """Both at once: otherwise the run would have saved again in between."""
    workers = run.rig.workers()
    for worker in workers:
        worker.suspend()
    newest = run.store.usable()[0]
    files = [name for name in storage.files(f"{run.store.uri}/{newest}") if name.endswith((".pt", ".json"))]
    paths = [Path(run.store.uri, newest, name) for name in files]
    path = max(paths, key=lambda path: path.stat().st_size) if largest else draw.choice(paths)
    path.write_bytes(change(path.read_bytes()))
    for worker in workers:
        worker.kill()


def _flip_bit(content: bytes, draw: random.Random) -> bytes:
    copy = bytearray(content)
    copy[draw.randrange(len(copy))] ^= 1 << draw.randrange(8)
    return bytes(copy)


def _invert_bytes(content: bytes, at: int) -> bytes:
    """Inverts 64 bytes."""
    return content[:at] + bytes(255 - byte for byte in content[at : at + 64]) + content[at + 64 :]


FAULTS: dict[str, Callable[[Run, random.Random], None]] = {
    fault.__name__: fault
    for fault in (
        kill_worker,
        hang_worker,
        lose_node,
        drain_node,
        stop_driver,
        kill_driver,
        fill_disk,
        flip_checkpoint,
        tear_checkpoint,
    )
}
