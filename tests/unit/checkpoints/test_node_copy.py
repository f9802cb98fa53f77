"""Which files of a checkpoint in an object store the ranks of each machine fetch."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.artifacts import storage
from tests.flaky_storage import Flaky, failing, flaky  # noqa: F401
from trainer.checkpoints.node_copy import node_copy, reads, reads_all, share


def names(world: int, stage: int) -> list[str]:
    """Files as DeepSpeed names them."""
    optimizer = [f"ds/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(world)]
    module = [f"ds/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(world)]
    return [*optimizer, *(module if stage == 3 else ["ds/mp_rank_00_model_states.pt"]), "state.json"]


@pytest.mark.parametrize("stage", [1, 3])
def test_eight_machines_of_eight_ranks_fetch_each_file_once_where_it_is_read(stage: int) -> None:
    machines = [f"node-{rank // 8}" for rank in range(64)]
    fetched = [share(names(64, stage), rank, machines, reads) for rank in range(64)]
    for node in range(8):
        here = sorted(path for rank in range(node * 8, node * 8 + 8) for path in fetched[rank])
        read = {path for path in names(64, stage) if any(reads(path, rank) for rank in range(node * 8, node * 8 + 8))}
        assert here == sorted(read)
        assert len(here) == {1: 8 + 2, 3: 16 + 1}[stage]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(1, 20))
def test_a_machine_has_all_that_its_ranks_read(machines: list[str], files: int) -> None:
    paths = [f"zero/{number}.pt" for number in range(files)]
    for wanted in (reads_all, lambda path, rank: hash((path, rank)) % 3 == 0):
        for machine in set(machines):
            here = [rank for rank, one in enumerate(machines) if one == machine]
            fetched = [path for rank in here for path in share(paths, rank, machines, wanted)]
            assert sorted(fetched) == sorted(path for path in paths if any(wanted(path, rank) for rank in here))


@pytest.mark.usefixtures("alone")
def test_files_of_other_ranks_stay_where_they_are(flaky: type[Flaky]) -> None:  # noqa: F811
    for name in names(2, 3):
        storage.write_bytes(f"flaky://run/step/{name}", name.encode())
    Flaky.fault = failing("read", "rank_1", AssertionError("another rank's"))
    with node_copy("flaky://run/step", reads) as folder:
        assert storage.files(folder) == [name for name in sorted(names(2, 3)) if "rank_1" not in name]
        assert Path(folder, "state.json").read_bytes() == b"state.json"
    assert not Path(folder).exists()
    Flaky.fault = failing("read", "state", TimeoutError("no answer"))
    with pytest.raises(OSError, match="no answer"), node_copy("flaky://run/step", reads):
        pass
