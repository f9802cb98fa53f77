"""Linear layers in oneDNN's layout give the states of the plain ones, in every family."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from tests.unit.models.test_exits import KINDS, SMALL
from trainer.models.exits import first_layers
from trainer.models.onednn_linear import OneDnnLinear, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def states(model: Any, rows: int = 3) -> torch.Tensor:
    ids = torch.randint(5, 64, (rows, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_family_keeps_its_states(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(KINDS[kind]).eval()
    expected, half = states(model), states(first_layers(model, 2))
    assert use_onednn(model)
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    assert torch.allclose(states(model), expected, atol=1e-5)
    assert torch.allclose(states(first_layers(model, 2)), half, atol=1e-5)


def test_low_precision_weights_keep_their_type() -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL, num_hidden_layers=2)).eval().bfloat16()
    expected = states(model)
    assert use_onednn(model)
    assert states(model).dtype == torch.bfloat16
    assert torch.allclose(states(model).float(), expected.float(), atol=0.05)


class ReadsTheWeight(torch.nn.Module):
    """A layer whose code multiplies by the weight of another, as some families do."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.inner.weight.T


def test_a_model_that_reads_weights_past_their_layers_stays_as_it_is() -> None:
    model = BertModel(BertConfig(**SMALL, num_hidden_layers=2)).eval()
    layer: Any = model.encoder.layer[1]
    layer.intermediate.dense = ReadsTheWeight(layer.intermediate.dense)
    names = {name: type(module) for name, module in model.named_modules()}
    expected = states(model)
    assert not use_onednn(model)
    assert {name: type(module) for name, module in model.named_modules()} == names
    assert not any(isinstance(module, OneDnnLinear) for module in model.modules())
    assert torch.equal(states(model), expected)


def test_models_of_one_body_share_its_weights_and_free_them() -> None:
    torch.manual_seed(0)
    first = BertModel(BertConfig(**SMALL, num_hidden_layers=2)).eval()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.embeddings.word_embeddings.weight.mul_(2)
        second.encoder.layer[1].output.dense.weight.mul_(2)
    expected = states(second)
    assert use_onednn(first)
    assert use_onednn(second)
    own: Any = first.encoder.layer
    other: Any = second.encoder.layer
    assert own[0].output.dense.weight is other[0].output.dense.weight
    assert own[1].output.dense.weight is not other[1].output.dense.weight
    assert torch.allclose(states(second), expected, atol=1e-5)
    held = weakref.ref(own[0].output.dense.weight)
    del first, second, own, other
    gc.collect()
    assert held() is None
