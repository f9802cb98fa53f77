"""Every merge of the table keeps the contract in `merging`."""

import pytest
import torch

from data_pipeline.errors import ModelError
from trainer.merging import MERGES, Merge


@pytest.fixture(params=sorted(MERGES))
def merge(request: pytest.FixtureRequest) -> Merge:
    return MERGES[request.param].config()


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "ids": torch.arange(3),
    }


def test_names_shapes_and_formats_stay(merge: Merge) -> None:
    merged = merge([weights(0), weights(1)], ["a", "b"])
    before = weights(0)
    assert {name: (one.shape, one.dtype) for name, one in merged.items()} == {
        name: (one.shape, one.dtype) for name, one in before.items()
    }


def test_a_model_merged_with_itself_is_itself(merge: Merge) -> None:
    merged = merge([weights(0)] * 3, ["a", "b", "c"])
    assert all(torch.equal(merged[name], one) for name, one in weights(0).items())


def test_models_of_other_shapes_are_refused_by_name(merge: Merge) -> None:
    with pytest.raises(ModelError, match="differ in w"):
        merge([weights(0), weights(1) | {"w": torch.zeros(3, 5)}], ["a", "b"])
