"""The Ray cluster of a job: the one that RAY_ADDRESS names, or one of our own that ends with the job."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from data_pipeline.errors import ClusterError

_ROOT = str(Path(__file__).resolve().parent.parent)
_WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Of an own cluster, whose only node cannot be drained: a process fewer in each training."""
_OBJECT_STORE = 512 << 20
_CONNECT_SECONDS = 10


@contextmanager
def ray_session(*, workers: int, worker_cpus: float, address: str | None, least: int | None = None) -> Iterator[None]:
    """Attaches to the cluster at `address`, or starts one here with room for `workers` and the reading of data.

    A cluster at `address` need have room for the `least` number only. An own cluster has as many logical CPUs as the job
    needs, also on a smaller machine: its work is then slower, not refused. What was there before is left as it is.

    Raises:
        ClusterError: there is no cluster at `address`, or it is too small.
    """
    if ray.is_initialized():
        yield
        return
    needed = workers * worker_cpus + 1
    # Ray Train reads these in the driver and passes them on; values that the user has set stay.
    for name, value in _WORKER_ENV.items():
        os.environ.setdefault(name, value)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    settings["runtime_env"] = {"env_vars": dict(_WORKER_ENV)}
    if address:
        _check_reachable(address)
        settings["address"] = address
    else:
        settings |= _own_cluster(max(os.cpu_count() or 1, int(needed + 0.999)))
    try:
        with _native_lines_aside():
            ray.init(**settings)
    except Exception as error:  # Ray raises a plain Exception where a node of its own does not start in time
        where = f"RAY_ADDRESS={address}" if address else "ray"
        reason = str(error.__cause__ or error).strip().splitlines()[0]  # the cause names a token that is missing
        fix = "Unset RAY_ADDRESS to run on this machine." if address else "Run it again when the machine is less busy."
        raise ClusterError(f"no cluster ({reason}).", where, fix) from error
    try:
        _check_size(least or workers, worker_cpus)
        _quieten()
        yield
    finally:
        ray.shutdown()


def _own_cluster(cpus: int) -> dict[str, Any]:
    """Arguments of `ray.init`. Ray Train asks the dashboard whether its controller lives, and would look for one by itself: it
    may find that of another cluster of this machine, which knows no such controller, whereupon the workers are taken away."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return {
        "address": "local", "num_cpus": cpus, "object_store_memory": _OBJECT_STORE,
        "runtime_env": {"env_vars": _WORKER_ENV | _ONE_MACHINE | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}},
        "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port,
    }  # fmt: skip


@contextmanager
def _native_lines_aside() -> Iterator[None]:
    """Ray's C++ part says on stderr which log level it was given, before that level holds. What fails still raises."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody answers at once: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like are Ray's to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"nobody answers there ({error.strerror or error}).", f"RAY_ADDRESS={address}", "Unset it to run on this machine."
        ) from error


def has_gpus() -> bool:
    """Whether workers train on GPUs: the cluster has some, be it on another node than the driver's."""
    return ray.cluster_resources().get("GPU", 0.0) >= 1


def _check_size(workers: int, worker_cpus: float) -> None:
    """Refuses a cluster in which the workers would wait for ever."""
    there, needed = ray.cluster_resources(), workers * worker_cpus + 1
    have, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if 1 <= gpus < workers:
        raise ClusterError(
            f"the cluster has {gpus:g} GPUs, the job asks for {workers} workers with one each.",
            "ray",
            f"Set workers={int(gpus)}, add nodes, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPUs.",
        )
    if have < needed:
        raise ClusterError(
            f"the cluster has {have:g} CPUs, the job needs {needed:g} (workers x worker_cpus, and one to read data).",
            "ray",
            "Lower workers= or worker_cpus=, or add nodes.",
        )


def _quieten() -> None:
    """Ray's own progress lines and warnings about its internals are not the job's output."""
    for name in ("ray.train", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
