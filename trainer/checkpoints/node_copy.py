"""Copies a folder of an object store to the machines that need it, each file once a machine.

The ranks of a machine share a folder and divide the fetching. A machine fetches only the files that its ranks read: ZeRO's
optimizer states, most of a checkpoint, are transferred once.
"""

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch.distributed as dist

from data_pipeline.artifacts import storage
from trainer.collectives import failure_on_any_rank, from_every_rank

_OF_RANK = re.compile(r"zero_pp_rank_(\d+)_")
"""In the names of the files of one rank's part (`_get_rank_zero_ckpt_name` and `_get_ckpt_name` in DeepSpeed 0.19's engine)."""


def reads(path: str, rank: int) -> bool:
    """Whether a rank reads a file of DeepSpeed's own checkpoint, written by as many ranks."""
    owner = _OF_RANK.search(path)
    return owner is None or int(owner[1]) == rank


def reads_all(path: str, rank: int) -> bool:
    """Every rank reads every file."""
    return True


def share(paths: list[str], rank: int, machines: list[str], wanted: Callable[[str, int], bool]) -> list[str]:
    """The files that a rank fetches, so that its machine has all files that its ranks read.

    Args:
        machines: the machine of each rank.
        wanted: whether a rank reads a file.
    """
    here = [one for one, machine in enumerate(machines) if machine == machines[rank]]
    readers = {path: [one for one in here if wanted(path, one)] for path in paths}
    return [path for number, path in enumerate(paths) if (of := readers[path]) and of[number % len(of)] == rank]


@contextmanager
def node_copy(uri: str, wanted: Callable[[str, int], bool]) -> Iterator[str]:
    """A local folder with the files of `uri` that this rank reads; `uri` itself if it is local.

    Every rank calls it, and all leave it together.

    Raises:
        OSError: the storage fails, on any rank.
    """
    if storage.is_local(uri):
        yield storage.filesystem(uri)[1]
        return
    rank, machines = dist.get_rank(), from_every_rank(machine_id())
    first = machines.index(machines[rank])
    with tempfile.TemporaryDirectory(prefix="scion-") if rank == first else nullcontext("") as made:
        folder = from_every_rank(made)[first]

        def fetch() -> None:
            mine = share(storage.files(uri), rank, machines, wanted)
            if mine:
                storage.fetch(uri, mine, folder)

        if wrong := failure_on_any_rank(fetch):
            raise OSError(f"{uri} could not be read ({wrong}).")
        yield folder
        dist.barrier()  # a rank that has read must not remove files that others still read


def machine_id() -> str:
    """Equal for ranks that see the same temporary folder: two containers may share a host name but no disk."""
    place = os.stat(tempfile.gettempdir())
    return f"{socket.gethostname()} {place.st_dev} {place.st_ino}"
