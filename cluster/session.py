"""The Ray cluster of a job: the one that RAY_ADDRESS names, or one of our own that ends with the job."""

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from cluster import capacity
from data_pipeline.errors import ClusterError

_ROOT = str(Path(__file__).resolve().parent.parent)
_WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_START, _START_SECONDS, _ELASTIC_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300", "20"
"""How long Ray Train waits for room for the workers: for all, which may have to be started; or where the run may go on with
fewer. Ray believes for a while that a machine which is gone has room."""
_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""Of an own cluster. Its only node cannot be drained: a process fewer in each training. Its workers are few, and asked often: a
training that has ended is known sooner."""
_OBJECT_STORE = 512 << 20
_CONNECT_SECONDS = 10


@contextmanager
def ray_session(
    *,
    workers: int | None,
    worker_cpus: float,
    address: str | None,
    least: int | None = None,
    say: capacity.Say = print,
) -> Iterator[int]:
    """Attaches to the cluster at `address`, or starts one here, waits until it has room for `workers` and the reading of data,
    and yields their number: where it is None, as many as there are GPUs.

    A cluster at `address` need have room for the `least` number only. An own cluster has as many logical CPUs as the job
    needs, also on a smaller machine: its work is then slower, not refused. What was there before is left as it is.

    Raises:
        ClusterError: there is no cluster at `address`, or it is too small.
    """
    if ray.is_initialized():
        yield capacity.resolve_workers(workers)
        return
    # Ray Train reads these in the driver and passes them on; values that the user has set stay.
    wanted = _WORKER_ENV | {_START: _START_SECONDS if least in (None, workers) else _ELASTIC_SECONDS}
    given = {name: os.environ.setdefault(name, value) for name, value in wanted.items()}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    settings["runtime_env"] = {"env_vars": given}
    if address:
        _check_reachable(address)
        settings["address"] = address
    else:
        needed, cores = math.ceil(capacity.cpus_for(workers or torch.cuda.device_count(), worker_cpus)), os.cpu_count() or 1
        if workers is not None and workers > cores:
            say(f"{workers} workers share the {cores} cores of this machine")
        settings |= _own_cluster(max(cores, needed), given)
    try:
        with _native_lines_aside():
            ray.init(**settings)
    except Exception as error:  # Ray raises a plain Exception where a node of its own does not start in time
        raise _no_cluster(error, address) from error
    try:
        found = capacity.resolve_workers(workers)
        if least is not None and found < least:
            raise ClusterError(
                f"workers=auto found {found}, the job asks for {least} at least.", "min_workers", "Lower it, or add GPUs."
            )
        capacity.wait_for(least or found, worker_cpus, say)
        _quieten()
        yield found
    finally:
        ray.shutdown()


def _no_cluster(error: Exception, address: str | None) -> ClusterError:
    where = f"RAY_ADDRESS={address}" if address else "ray"
    reason = str(error.__cause__ or error).strip().splitlines()[0]  # the cause names a token that is missing
    if address:
        fix = "Unset RAY_ADDRESS to run on this machine."
    elif "missing packages" in reason:
        fix = "Install all of Ray's: pip install 'ray[default,train,data,serve]'."
    else:
        fix = "Run it again when the machine is less busy."
    return ClusterError(f"no cluster ({reason}).", where, fix)


def _own_cluster(cpus: int, given: dict[str, str]) -> dict[str, Any]:
    """Arguments of `ray.init`, with the environment of the workers. Ray Train asks the dashboard whether its controller lives,
    and would look for one by itself: it may find that of another cluster of this machine, which knows no such controller. Then
    the workers are taken away."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return {
        "address": "local", "num_cpus": cpus, "object_store_memory": _OBJECT_STORE,
        "runtime_env": {"env_vars": given | _ONE_MACHINE | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}},
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


def _quieten() -> None:
    """Ray's own progress lines and warnings about its internals are not the job's output."""
    for name in ("ray.train", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
