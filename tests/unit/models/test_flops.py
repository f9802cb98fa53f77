"""Our count of operations against torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.feed.target_batch import TargetBatch
from tests.conftest import tiny_decoder, tiny_model, wordpiece
from trainer.models.freezing import freeze
from trainer.models.packed_lm import PackedLM


def whole_rows(rows: int, length: int, every: int, causal: bool) -> TargetBatch:
    """Rows of one document each, with a target at every `every`-th place."""
    places = torch.arange(0, rows * length, every)
    seen = rows * length * (length + 1) // 2
    return TargetBatch(
        input_ids=torch.randint(5, 300, (rows, length)),
        segments=torch.zeros(rows, length, dtype=torch.long),
        positions=torch.arange(length).repeat(rows, 1),
        places=places,
        labels=torch.randint(5, 300, (len(places),)),
        streams=torch.zeros_like(places),
        is_packed=False,
        tokens=rows * length,
        attention_pairs=seen if causal else 2 * seen - rows * length,
    )


@pytest.mark.parametrize("every", [1, 7])
def test_the_step_of_an_encoder_equals_what_torch_counts(english, every: int) -> None:
    module = PackedLM(tiny_model(wordpiece(english)), causal=False, share=1 / every)
    batch = whole_rows(3, 64, every, causal=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(batch).sum().backward()
    estimate = module.flops().step(batch.tokens, len(batch.labels), batch.attention_pairs)
    # Biases and normalisations are parameters that are not multiplied with.
    assert estimate == pytest.approx(counted.get_total_flops(), rel=0.06)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_step_of_a_decoder_without_attention_equals_what_torch_counts(english, kind: str) -> None:
    """We count only the visible half of the scores; torch counts all of them."""
    module = PackedLM(tiny_decoder(wordpiece(english), kind), causal=True)
    batch = whole_rows(2, 48, 1, causal=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(batch).sum().backward()
    scores = 3 * module.flops().attention * 2 * 48 * 48
    estimate = module.flops().step(batch.tokens, len(batch.labels), 0) + scores
    assert estimate == pytest.approx(counted.get_total_flops(), rel=0.06)


@pytest.mark.parametrize("layers", ["0", "1", "[01]"])
def test_frozen_layers_need_no_weight_gradients(english, layers: str) -> None:
    """The embeddings are trained, so gradients pass through all layers."""
    module = PackedLM(tiny_model(wordpiece(english)), causal=False, share=1.0)
    freeze(module, [f"bert.encoder.layer.{layers}.*"])
    batch = whole_rows(3, 64, 1, causal=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(batch).sum().backward()
    estimate = module.flops().step(batch.tokens, len(batch.labels), batch.attention_pairs)
    assert estimate == pytest.approx(counted.get_total_flops(), rel=0.06)
