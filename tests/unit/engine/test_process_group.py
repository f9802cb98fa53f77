"""Settings of torch's process group: the node's network interface, the folder for NCCL's dumps, time-outs."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from data_pipeline.errors import ConfigError
from trainer.config.train import TrainConfig
from trainer.engine.process_group import TimeOut, dumps_found, flight_folder, interface_of, variables

INTERFACES = {
    "lo": ["127.0.0.1", "::1", "00:00:00:00:00:00"],
    "docker0": ["172.17.0.1", "02:42:ac:11:00:01"],
    "eth0": ["10.77.0.12", "2001:db8::12", "fe80::42%eth0", "aa:bb:cc:dd:ee:ff"],
    "eth01": ["192.168.1.7"],
}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.77.0.12", "eth0"),
        ("2001:db8:0::12", "eth0"),
        ("fe80::42", "eth0"),
        ("172.17.0.1", "docker0"),
        ("192.168.1.7", "eth01"),
        ("127.0.0.1", None),
        ("127.0.1.1", None),
        ("::1", None),
        ("10.0.0.9", None),
        ("fe80::42%eth0", "eth0"),
        ("node-7.local", None),
    ],
)
def test_the_interface_is_that_of_the_node_s_own_address(address: str, name: str | None) -> None:
    assert interface_of(address, INTERFACES) == name


def test_the_interfaces_of_this_machine_are_read() -> None:
    interfaces = {name: [one.address for one in more] for name, more in psutil.net_if_addrs().items()}
    for name, addresses in interfaces.items():
        for address in addresses:
            if "." in address and not address.startswith("127."):
                assert interface_of(address, interfaces) == name


def test_workers_get_interface_and_dumps_and_a_user_s_own_settings_win() -> None:
    given = variables("10.77.0.12", INTERFACES, "/runs/a/nccl", {})
    assert given == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "=eth0",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": "/runs/a/nccl/rank-",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/runs/a/nccl/rank-",
    }
    user_settings = {"NCCL_SOCKET_IFNAME": "ib0", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/mine", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    assert variables("10.77.0.12", INTERFACES, "/runs/a/nccl", user_settings) == {"GLOO_SOCKET_IFNAME": "eth0"}
    assert not any("IFNAME" in name for name in variables("127.0.0.1", INTERFACES, "/runs/a/nccl", {}))
    assert variables("127.0.0.1", INTERFACES, None, {}) == {}  # gloo


def test_torch_reads_the_variables() -> None:
    """In the library itself; the CPU build has those of the recorder, and not NCCL's own."""
    content = Path(torch.__file__).parent.joinpath("lib", "libtorch_cpu.so").read_bytes()
    assert b"TORCH_NCCL_DEBUG_INFO_TEMP_FILE" in content


def test_dumps_lie_in_the_run_s_folder_or_on_the_machine(tmp_path: Path) -> None:
    assert flight_folder(str(tmp_path)) == f"{tmp_path}/nccl"
    apart = {flight_folder(f"memory://bucket/{name}") for name in ("a", "b")}
    assert len(apart) == 2
    assert all(os.path.isabs(folder) and "://" not in folder for folder in apart)
    assert dumps_found(str(tmp_path)) == []
    (tmp_path / "nccl").mkdir()
    assert dumps_found(str(tmp_path)) == []
    (tmp_path / "nccl" / "rank-0").write_bytes(b"dump")
    assert f"{tmp_path}/nccl" in dumps_found(str(tmp_path))[0]


def test_time_outs_have_a_sound_range() -> None:
    for wrong in ({"collective_minutes": 0.0}, {"collective_minutes": 10.0, "first_step_minutes": 9.0}):
        with pytest.raises(ConfigError, match="collective_minutes"):
            TrainConfig(**wrong)  # type: ignore[arg-type]


def in_two(rank: int, folder: Path) -> None:
    """Rank 1 comes 3 seconds late, to a collective with a long time-out, then with a short one, in a group of its own, too."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    groups, limit, interfaces = [None, dist.new_group([0, 1])], TimeOut(), list[Any]()
    for minutes, group in ((1.0, groups[0]), (1.0, groups[1]), (1 / 60, groups[1]), (1 / 60, groups[0])):
        limit.set(minutes)
        time.sleep(3.0 * rank)
        began = time.perf_counter()
        try:
            dist.all_reduce(torch.ones(1), group=group)
            interfaces.append("done")
        except RuntimeError as error:
            interfaces.append("late" if "imed out" in str(error) and time.perf_counter() - began < 2.9 else str(error))
            break
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(interfaces))


def test_a_time_out_holds_for_every_group(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=in_two, args=(rank, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(100)
    finally:
        for rank in ranks:
            rank.kill()
    assert json.loads((tmp_path / "found.json").read_text()) == ["done", "done", "late"]
