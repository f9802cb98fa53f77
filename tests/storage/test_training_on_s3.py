"""A chain of jobs with its output on S3, which fails now and then."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline.artifacts import storage
from tests.integration.conftest import Chain, inputs, scion_process  # noqa: F401
from tests.storage.faulty_proxy import Faults


@pytest.mark.slow
def test_a_training_on_a_failing_store_gives_the_weights_of_one_on_a_disk(
    inputs: Chain,  # noqa: F811
    folder: str,
    faults: Faults,
    tmp_path: Path,
) -> None:
    options = ["workers=1", "control=false", "pretrain.train.checkpoint_steps=2"]
    faults.share = 0.05
    for step in ("shard", "transfer", "pretrain"):
        for output in (str(tmp_path), folder):
            process = scion_process(step, inputs.config, f"output={output}", *options)
            assert process.returncode == 0, process.stdout + process.stderr
    with storage.local_copy(f"{folder}/pretrain", lambda name: name.endswith(".safetensors")) as copy:
        found, expected = (load_file(f"{place}/model.safetensors") for place in (copy, f"{tmp_path}/pretrain"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert faults.seen["lost"] + faults.seen["busy"] > 5
