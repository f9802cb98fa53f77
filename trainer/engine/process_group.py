"""torch's process group: its network interface, its time-outs, and NCCL's flight recorder.

Ray Train makes the group before our own code runs on a worker, so that a backend of ours prepares the environment.
"""

import ipaddress
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.util import get_node_ip_address
from torch.distributed import distributed_c10d

from data_pipeline.artifacts import storage

FLIGHT = "nccl"
"""Below a run's folder: NCCL's flight recorder, a file a rank."""
_DUMP_FILES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Names of the variable with the prefix of those files: of newer versions of torch, and of all."""


def flight_folder(uri: str) -> str:
    """Where NCCL's flight recorder writes: in the run's folder, or on each machine if that is an object store."""
    if storage.is_local(uri):
        return str(os.path.join(storage.filesystem(uri)[1], FLIGHT))
    return os.path.join(tempfile.gettempdir(), f"scion-{FLIGHT}", storage.filesystem(uri)[1].strip("/").replace("/", "-"))


def interface_of(address: str, interfaces: dict[str, list[str]]) -> str | None:
    """The network interface with the `address` of this node.

    None if there is none, as for a host name, or if it is the loopback, which gloo and NCCL find by themselves.
    """
    wanted = _address(address)
    if wanted is None or wanted.is_loopback:
        return None
    return next((name for name, found in interfaces.items() if wanted in map(_address, found)), None)


def _address(text: str) -> Any:
    """An IP address, without the interface that psutil appends to a local IPv6 address; None for other text."""
    with suppress(ValueError):
        return ipaddress.ip_address(text.partition("%")[0])
    return None


def variables(address: str, interfaces: dict[str, list[str]], folder: str | None, present: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to a worker's environment; those `present` there stay.

    Args:
        folder: for NCCL's dumps; None for none.
    """
    found: dict[str, str] = {}
    if folder is not None:
        found["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "1"
        if not any(name in present for name in _DUMP_FILES):
            found |= dict.fromkeys(_DUMP_FILES, os.path.join(folder, "rank-"))
    if (interface := interface_of(address, interfaces)) is not None:
        # Without "=" NCCL takes every interface whose name begins so.
        found |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
    return {name: value for name, value in found.items() if name not in present}


def _prepare(folder: str | None) -> None:
    """Prepares the environment of a worker, before the group is made."""
    interfaces = {name: [one.address for one in found] for name, found in psutil.net_if_addrs().items()}
    os.environ.update(variables(get_node_ip_address(), interfaces, folder, os.environ))
    if folder is not None:
        with suppress(OSError):  # without dumps on a full disk, which the checkpoints will report
            os.makedirs(folder, exist_ok=True)


@dataclass
class GroupConfig(TorchConfig):
    """Ray Train's settings of the group, with our environment."""

    flight_folder: str | None = None
    """Folder for NCCL's dumps, on GPUs."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _PreparedBackend


class _PreparedBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        worker_group.execute(_prepare, backend_config.flight_folder)
        super().on_start(worker_group, backend_config)


class TimeOut:
    """The time-out of collectives, in all process groups of a worker."""

    def __init__(self) -> None:
        self._minutes: float | None = None

    def set(self, minutes: float) -> None:
        """Sets the time-out; every rank calls it, none while another is in a collective."""
        if minutes != self._minutes:
            self._minutes = minutes
            for group in list(distributed_c10d._world.pg_map):
                distributed_c10d._set_pg_timeout(timedelta(minutes=minutes), group)


def dumps_found(uri: str) -> list[str]:
    """A line for the user if a collective of the run has timed out and NCCL has recorded what each rank was doing."""
    folder = flight_folder(uri)
    if not os.path.isdir(folder) or not os.listdir(folder):
        return []
    return [f"a collective timed out before; NCCL's flight recorder is in {folder} (torchfrtrace reads it)"]
