"""The Ray cluster of a job: the one at RAY_ADDRESS, or one started for the job that ends with it."""

import json
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
from cluster.reach import check_reachable
from cluster.serve.haproxy import local_environment
from data_pipeline.errors import ClusterError

_ROOT = str(Path(__file__).resolve().parent.parent)
_WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_START, _START_SECONDS, _ELASTIC_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300", "20"
"""Time that Ray Train waits for room for all workers, and for a run that may continue with fewer: for a while Ray still
counts the room of a machine that is gone."""
_LOCAL_ENV = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""Environment of a local cluster. Its only node cannot be drained, so a training needs no watcher process. Its workers are few
and polled often, so that the end of a training is noticed sooner. On a busy machine Ray Serve's proxy takes longer to start
than the 5 s after which Serve kills it and starts another."""
_OBJECT_STORE_BYTES = 512 << 20


@contextmanager
def ray_session(
    *,
    workers: int | None,
    worker_cpus: float,
    address: str | None,
    min_workers: int | None = None,
    say: capacity.Say = print,
) -> Iterator[int]:
    """Attaches to the cluster at `address`, or starts a local one.

    Waits until it has room for `workers` and for reading data, and yields their number; `workers=None` means one for each GPU.

    A cluster at `address` needs room for `min_workers` only. A local cluster has as many logical CPUs as the job needs;
    on a smaller machine the job runs slower instead of being refused. A Ray session that was already initialised is used as
    it is.

    Raises:
        ClusterError: there is no cluster at `address`, or it is too small.
    """
    if ray.is_initialized():
        yield capacity.resolve_workers(workers)
        return
    environment = _worker_environment(is_elastic=min_workers not in (None, workers))
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        check_reachable(address.removeprefix("ray://"), f"RAY_ADDRESS={address}", "Unset it to run on this machine.")
        settings["address"] = address
        settings["runtime_env"] = {"env_vars": {name: environment[name] for name in environment.keys() - _of_job()}}
    else:
        needed, cores = math.ceil(capacity.cpus_for(workers or torch.cuda.device_count(), worker_cpus)), os.cpu_count() or 1
        if workers is not None and workers > cores:
            say(f"{workers} workers share the {cores} cores of this machine")
        settings |= _local_cluster(max(cores, needed), environment)
    try:
        with _without_native_output():
            ray.init(**settings)
    except Exception as error:  # Ray raises a plain Exception if its own node does not start in time
        raise _start_error(error, address) from error
    try:
        count = capacity.resolve_workers(workers)
        if min_workers is not None and count < min_workers:
            raise ClusterError(
                f"workers=auto found {count}, the job asks for {min_workers} at least.", "min_workers", "Lower it, or add GPUs."
            )
        capacity.wait_for(min_workers or count, worker_cpus, say)
        _silence_ray()
        yield count
    finally:
        ray.shutdown()


def _worker_environment(is_elastic: bool) -> dict[str, str]:
    """Sets the environment variables of the workers in this process, where Ray Train reads them, and returns them.

    The user's own values win.
    """
    defaults = _WORKER_ENV | {_START: _ELASTIC_SECONDS if is_elastic else _START_SECONDS}
    environment = {name: os.environ.setdefault(name, value) for name, value in defaults.items()}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
    return environment


def _of_job() -> set[str]:
    """Environment variables that the submitted job of this process names, which Ray lets no driver name again."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return set(job.get("runtime_env", {}).get("env_vars", {}))


def _start_error(error: Exception, address: str | None) -> ClusterError:
    """The ClusterError to raise when `ray.init` has failed, with the cause and advice that fits it. Raises nothing itself."""
    where = f"RAY_ADDRESS={address}" if address else "ray"
    lines = str(error.__cause__ or error).strip().splitlines()  # the cause names a missing token
    reason = lines[-1].strip() if "Traceback" in lines[0] else lines[0]
    if address:
        fix = "Unset RAY_ADDRESS to run on this machine."
    elif "missing packages" in reason:
        fix = "Install all parts of Ray: pip install 'ray[default,train,data,serve]'."
    else:
        fix = "Run it again when the machine is less busy."
    if "auth" in reason.lower():
        return ClusterError(
            f"the cluster refused this session ({reason}).", where, "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        )
    return ClusterError(f"no cluster ({reason}).", where, fix)


def _local_cluster(cpus: int, environment: dict[str, str]) -> dict[str, Any]:
    """Arguments of `ray.init` for a local cluster, with the environment of the workers.

    Ray Train asks the dashboard whether its controller is alive. The port is fixed here, because Ray Train might otherwise find
    the dashboard of another cluster on this machine, which does not know the controller, and end the workers.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    dashboard = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    return {
        "address": "local",
        "num_cpus": cpus,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "runtime_env": {"env_vars": environment | _LOCAL_ENV | local_environment() | dashboard},
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
    }


@contextmanager
def _without_native_output() -> Iterator[None]:
    """Discards stderr: Ray's C++ part reports its log level there before the level takes effect. Errors still raise."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _silence_ray() -> None:
    """Keeps Ray's progress lines and warnings about its internals out of the job's output."""
    for name in ("ray.train", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
