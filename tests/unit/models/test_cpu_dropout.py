"""Dropout on a CPU against torch's: the share that is dropped, its randomness, and the attention that uses it."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.families.configs import FAMILIES, tiny
from tests.unit.models.test_packed_lm import CAUSAL, LEAN, batch_of, gradients
from trainer.models.cpu_dropout import Dropout, attention, dropout_mask, replace_dropout
from trainer.models.forward_check import ForwardPath
from trainer.models.packed_lm import PackedLM


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(1)
    drop, scale = dropout_mask((300, 1001), p)
    assert drop.float().mean() == pytest.approx(p, abs=4 * (0.25 / drop.numel()) ** 0.5)
    assert scale * (1 - p) == pytest.approx(1, rel=1e-4)
    outputs = Dropout(p)(torch.ones(300, 1001))
    assert set(outputs.unique().tolist()) == {0.0, torch.tensor(scale).item()}
    assert outputs.mean() == pytest.approx(1, abs=0.03)
    rows = drop.float() - p
    assert (rows[:-1] * rows[1:]).mean().abs() < 0.01  # neighbours are independent
    assert (rows[:, :-1] * rows[:, 1:]).mean().abs() < 0.01


def test_torchs_seed_determines_the_mask_and_each_call_draws_a_new_one() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append([dropout_mask((64, 64), 0.3)[0] for _ in range(2)])
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_gradients_of_dropped_elements_are_zero_and_evaluation_drops_nothing() -> None:
    module, hidden = Dropout(0.4), torch.randn(50, 60, requires_grad=True)
    given = module(hidden)
    given.sum().backward()
    assert torch.equal(hidden.grad == 0, given == 0)
    assert torch.allclose(hidden.grad * hidden, given)
    assert module.eval()(hidden) is hidden


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_equals_torchs_on_the_remaining_weights(groups: int, masked: bool) -> None:
    torch.manual_seed(3)
    query = torch.randn(2, 4, 9, 8)
    key, value = (torch.randn(2, 4 // groups, 9, 8) for _ in range(2))
    mask = torch.rand(2, 1, 9, 9).lt(0.6) | torch.eye(9, dtype=torch.bool) if masked else None
    wide = [one.repeat_interleave(groups, dim=1) for one in (key, value)]
    plain = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.3)
    assert (attention(query, key, value, mask, 0.3, 0.0) - plain).abs().max() < 1e-6
    scores = query @ wide[0].transpose(2, 3) * 0.3
    weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
    torch.manual_seed(5)
    drop, scale = dropout_mask(weights.shape, 0.2)
    torch.manual_seed(5)
    found = attention(query, key, value, mask, 0.3, 0.2)
    assert (found - (weights * ~drop * scale) @ wide[1]).abs().max() < 1e-6


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LEAN)
def test_a_model_with_negligible_dropout_equals_the_model_without(name: str, packed: bool) -> None:
    """1e-7 rounds to 0 of 2^16 weights, but takes the path of dropout."""
    batch, found = batch_of(name, packed), []
    for p in (0.0, 1e-7):
        model = tiny(name)
        for part in model.modules():
            for attribute in ("attn_dropout", "dropout"):
                if isinstance(getattr(part, attribute, None), torch.nn.Dropout):
                    getattr(part, attribute).p = p
            if isinstance(getattr(part, "attention_dropout", None), float):
                part.attention_dropout = p
        replace_dropout(model)
        module = PackedLM(model, name in CAUSAL)
        kernel, head = FAMILIES[name].way
        module.use_path(ForwardPath(kernel=kernel, head=head))  # type: ignore[arg-type]
        losses = module(batch)
        found.append((losses.detach(), gradients(model, losses)))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-5
    for weight, gradient in found[0][1].items():
        assert (gradient - found[1][1][weight]).abs().max() < 1e-5, weight


def test_a_model_with_dropout_uses_our_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.models import cpu_dropout

    calls: list[float] = []
    real = cpu_dropout.attention
    monkeypatch.setattr(cpu_dropout, "attention", lambda *given: calls.append(given[-1]) or real(*given))
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            attention_probs_dropout_prob=0.1,
        )
    ).train()
    names = set(model.state_dict())
    module = PackedLM(model, causal=False)
    replace_dropout(module)
    module(batch_of("bert", packed=False))
    assert calls == [0.1, 0.1]
    assert set(model.state_dict()) == names
    module.eval()(batch_of("bert", packed=False))
    assert len(calls) == 2
