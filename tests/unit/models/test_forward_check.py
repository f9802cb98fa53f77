"""The forward check before a training: the path that it chooses, and the differences that it finds."""

from typing import Any

import pytest
import torch
from transformers import AutoModel, RobertaForCausalLM
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_pipeline.errors import ModelError
from tests.families.configs import COMMON, FAMILIES, tiny
from trainer.models import packed_attention, packed_lm
from trainer.models.dual_encoder import DualEncoder
from trainer.models.forward_check import ForwardCheck
from trainer.models.loading import position_offset
from trainer.models.packed_lm import PackedLM

LENGTH = 64


def check_family(name: str, precision: torch.dtype = torch.float32) -> ForwardCheck:
    model = tiny(name)
    for weight in model.parameters():
        weight.data = weight.data.to(precision)
    return PackedLM(model, FAMILIES[name].causal).check(LENGTH)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in COMMON else pytest.mark.slow)
        for name, family in FAMILIES.items()
        if family.packs and not family.refused
    ],
)
def test_every_family_takes_the_leanest_way_that_is_right(name: str) -> None:
    result = check_family(name)
    assert (result.path.kernel, result.path.head) == FAMILIES[name].way, result.reasons
    assert result.difference < 1e-5 < result.tolerance < 1e-3


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.packs and family.refused])
def test_a_model_that_reads_padding_as_text_is_rejected(name: str) -> None:
    with pytest.raises(ModelError, match="not give the same logits") as refusal:
        check_family(name)
    assert type(tiny(name)).__name__ in str(refusal.value)


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "mistral", "gemma2", "qwen3"])
def test_in_bf16_rounding_is_no_difference_and_a_leak_is(name: str, monkeypatch) -> None:
    result = check_family(name, torch.bfloat16)
    assert (result.path.kernel, result.path.head) == FAMILIES[name].way, result.reasons
    assert result.difference < result.tolerance == pytest.approx(0.088, abs=1e-3)
    # Where masks look back, transformers keeps documents apart by their positions. A leak takes a mask that looks everywhere.
    leaky = {"mask_function": bidirectional_mask_function, "allow_is_causal_skip": False}
    monkeypatch.setattr(packed_attention, "with_separate_documents", lambda options: options | leaky)
    assert check_family(name, torch.bfloat16).path.kernel is None


@pytest.mark.parametrize("name", ["modernbert", "mistral", "gemma3_text", "qwen2", "gpt_oss"])
def test_a_mask_without_the_model_s_window_is_found(name: str, monkeypatch) -> None:
    real = packed_attention.with_separate_documents
    plain = causal_mask_function if FAMILIES[name].causal else bidirectional_mask_function
    monkeypatch.setattr(packed_attention, "with_separate_documents", lambda options: real(options | {"mask_function": plain}))
    assert_refused_rows(check_family(name))


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert"])
def test_a_mask_that_the_model_ignores_is_found(name: str, monkeypatch) -> None:
    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **options)

    for kernel in ("sdpa", "eager"):
        name_there = packed_attention.implementation(kernel)  # type: ignore[arg-type]
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name_there, blind)
    assert_refused_rows(check_family(name))


@pytest.mark.parametrize("name", ["roberta", "bert", "gpt2", "llama"])
def test_positions_that_start_elsewhere_are_found(name: str, monkeypatch) -> None:
    monkeypatch.setattr(packed_lm, "position_offset", lambda config: position_offset(config) + 2)
    module = PackedLM(tiny(name), FAMILIES[name].causal)
    if name == "llama":  # positions that turn are relative: the same offset for all makes no difference
        assert module.check(LENGTH).path.kernel == "sdpa"
    else:
        assert_refused_rows(module.check(LENGTH))


@pytest.mark.parametrize("name", ["gpt_oss", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_a_row_of_one_document_goes_through_the_check_too(name: str, monkeypatch) -> None:
    """On a GPU it is left to SDPA, which knows neither soft caps nor sinks."""
    module = PackedLM(tiny(name), True)
    monkeypatch.setattr(PackedLM, "kernels", ("flex", "eager"))
    result = module.check(LENGTH)
    assert result.path.kernel == "eager"
    assert "flex attention" in result.reasons[0]


def test_a_model_on_the_cpu_of_a_machine_with_a_gpu_is_not_tried_with_kernels_of_the_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = PackedLM(tiny("bert"), False)
    assert module.kernels == ("sdpa", "eager")
    assert module.path.kernel == "sdpa"


def test_a_soft_cap_that_a_kernel_leaves_out_is_found(monkeypatch) -> None:
    def uncapped(module: Any, *tensors: Any, softcap: Any = None, **options: Any) -> Any:
        return packed_attention.eager_attention(module, *tensors, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, packed_attention.implementation("eager"), uncapped)
    assert_refused_rows(check_family("gemma2"))


@pytest.mark.parametrize(
    ("name", "head"),
    [("bert", "tapped"), ("llama", "tapped"), ("gemma2", "gathered"), ("granite", "gathered"), ("esm", "gathered")],
)
def test_an_operation_after_the_output_layer_is_found_however_small_its_effect(name: str, head: str) -> None:
    """Gemma's cap hardly changes logits near 0, as those of a fresh model are, and much later ones."""
    model = tiny(name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.05)
    assert PackedLM(model, FAMILIES[name].causal).check(LENGTH).path.head == head


def test_a_head_that_mixes_places_is_rejected(monkeypatch) -> None:
    model = tiny("bert")
    real = model.cls.forward
    monkeypatch.setattr(model.cls, "forward", lambda hidden: real(hidden + hidden.mean(dim=1, keepdim=True)))
    with pytest.raises(ModelError, match="BertForMaskedLM does not give the same logits"):
        PackedLM(model, False).check(LENGTH)


def test_the_check_leaves_the_model_as_it_was(monkeypatch) -> None:
    module = PackedLM(tiny("bert"), False)
    before = {name: weight.clone() for name, weight in module.model.state_dict().items()}
    assert module.training
    module.check(LENGTH)
    assert module.training
    assert all(torch.equal(weight, before[name]) for name, weight in module.model.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "llama", "gemma2", "deberta-v2"])
def test_a_text_has_one_vector_in_any_batch(name: str) -> None:
    model: Any = AutoModel.from_config(tiny(name).config)
    result = DualEncoder(model, "mean").check(LENGTH)
    assert result.difference < 1e-5


def test_an_encoder_that_reads_padding_is_refused() -> None:
    model: Any = AutoModel.from_config(tiny("convbert").config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    with pytest.raises(ModelError, match="ConvBertModel gives a text another vector in a padded batch"):
        DualEncoder(model, "mean").check(LENGTH)


def assert_refused_rows(result: ForwardCheck) -> None:
    """Packed rows were tried, differed, and are not used."""
    assert result.path.kernel is None
    assert all(("packed rows" in reason and "differ by" in reason) or "fail" in reason for reason in result.reasons)
    assert result.reasons


def test_a_decoder_that_sees_what_it_is_to_predict_is_refused() -> None:
    """RoBERTa's causal class looks both ways unless its settings say is_decoder; so does XLNet's."""
    settings = tiny("roberta").config
    model: Any = RobertaForCausalLM(settings)
    with pytest.raises(ModelError, match="RobertaForCausalLM predicts a token from those behind it"):
        PackedLM(model, True).check(LENGTH)
    settings.is_decoder = True
    assert PackedLM(RobertaForCausalLM(settings), True).check(LENGTH).path.kernel == "sdpa"


def test_a_model_that_counts_mask_tokens_in_a_row_is_not_packed() -> None:
    result = check_family("esm")
    assert result.path.kernel is None
    assert "differ by" in result.reasons[0]


def test_a_bias_behind_the_layer_is_found_while_it_is_zero() -> None:
    """ESM adds its bias behind the output layer, and begins with zeros."""
    model: Any = tiny("esm")
    torch.nn.init.zeros_(model.lm_head.bias)
    assert PackedLM(model, False).check(LENGTH).path.head == "gathered"


def test_rows_that_the_model_s_own_forward_cannot_read_are_refused() -> None:
    with pytest.raises(ModelError, match="BertForMaskedLM fails on 200 random tokens"):
        PackedLM(tiny("bert"), False).check(200)
