"""Loading models: no silent random weights, the saved dtype, one tower of several."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertGenerationConfig,
    BertModel,
    Gemma2Config,
    Gemma2PreTrainedModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MBartConfig,
    MBartModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
    XLNetConfig,
)

from data_pipeline.errors import ModelError
from trainer.models import loading

SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=40)
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = SMALL | {"num_key_value_heads": 1, "pad_token_id": 0, "max_position_embeddings": 40}


def save_model(
    model: PreTrainedModel, folder: Any, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> str:
    """A folder with modified weights."""
    model.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return str(folder)


def test_renamed_weights_are_an_error_that_names_both_sides(tmp_path) -> None:
    """Such a BERT silently got random weights."""
    model = BertForMaskedLM(BertConfig(**SMALL))
    folder = save_model(model, tmp_path, lambda state: {name.replace("bert.", "net."): w for name, w in state.items()})
    for load in (lambda: loading.language_model(folder, 0), lambda: loading.encoder(folder)):
        with pytest.raises(ModelError, match=r"missing: .*embeddings\.LayerNorm\.bias.* and \d+ more.*It holds .*net\.embed"):
            load()


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.dense.weight", "bert.embeddings.position_embeddings.weight"])
def test_one_weight_that_is_missing_is_named(tmp_path, name: str) -> None:
    def without(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {one: weight for one, weight in state.items() if one != name}

    folder = save_model(BertForMaskedLM(BertConfig(**SMALL)), tmp_path, without)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        loading.language_model(folder, 0)
    with pytest.raises(ModelError, match=name.removeprefix("bert.").replace(".", r"\.")):
        loading.encoder(folder)


@pytest.mark.parametrize("body", [BertModel(BertConfig(**SMALL)), GPT2Model(GPT2)], ids=["bert", "gpt2"])
def test_a_head_and_a_pooler_may_be_new(tmp_path, body) -> None:
    body.save_pretrained(tmp_path)
    first, again, other = (loading.language_model(str(tmp_path), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert all(name.startswith("cls.") for name in changed)
    assert loading.encoder(str(tmp_path)) is not None


def test_a_weight_of_another_shape_is_named_with_both(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """transformers refers to a report that Scion does not show."""
    name = "bert.embeddings.LayerNorm.bias"
    folder = save_model(BertForMaskedLM(BertConfig(**SMALL)), tmp_path, lambda weights: weights | {name: torch.zeros(3)})
    with pytest.raises(ModelError, match=rf"{name} is \(3,\) in the file, and \(\d+,\) by config\.json"):
        loading.language_model(folder, 0)


@pytest.mark.parametrize(
    "model",
    [GPT2LMHeadModel(GPT2), T5ForConditionalGeneration(T5Config(**T5)), BertForMaskedLM(BertConfig(**SMALL))],
    ids=["gpt2", "t5", "bert"],
)
def test_tied_weights_are_not_missing(tmp_path, model) -> None:
    model.save_pretrained(tmp_path)
    assert loading.language_model(str(tmp_path), 0) is not None


def test_the_saved_dtype_is_kept_if_asked_for(tmp_path) -> None:
    BertForMaskedLM(BertConfig(**SMALL)).bfloat16().save_pretrained(tmp_path)
    model = loading.language_model(str(tmp_path), 0, "auto")
    assert model.dtype == torch.bfloat16
    assert loading.with_random_weights(model, 1).dtype == torch.bfloat16
    assert loading.language_model(str(tmp_path), 0).dtype == torch.float32


# Encoders of encoder-decoders


@pytest.mark.parametrize(
    "model",
    [
        T5ForConditionalGeneration(T5Config(**T5)),
        MT5ForConditionalGeneration(MT5Config(**T5)),
        UMT5ForConditionalGeneration(UMT5Config(**T5)),
        BartModel(BartConfig(**BART, init_std=0.3)),
        BartModel(BartConfig(**BART, init_std=0.3, scale_embedding=True)),
        MBartModel(MBartConfig(**BART, init_std=0.3, scale_embedding=True)),
    ],
    ids=["t5", "mt5", "umt5", "bart", "bart, scaled", "mbart"],
)
def test_an_encoder_alone_has_the_same_output_as_within_its_model(tmp_path, model) -> None:
    """Also padded, after saving, and by plain `AutoModel` if that has a class for it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    model.eval().save_pretrained(tmp_path / "whole")
    made = loading.encoder(str(tmp_path / "whole"))
    ids = torch.randint(3, 100, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    ids[1, 9:] = model.config.pad_token_id
    made.save_pretrained(tmp_path / "encoder")
    again = loading.encoder(str(tmp_path / "encoder"))
    with torch.no_grad():
        expected = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        for encoder in (made, again):
            found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
            assert (found - expected).abs().max() < 1e-5
        if "t5" not in made.config.model_type:
            plain = AutoModel.from_pretrained(tmp_path / "encoder").eval()
            found = plain(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
            assert (found - expected).abs().max() < 1e-5


def test_an_encoder_that_no_class_runs_alone_is_rejected(tmp_path) -> None:
    PegasusForConditionalGeneration(PegasusConfig(**BART)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder of pegasus cannot be an embedder"):
        loading.encoder(str(tmp_path))


# Towers


def gemma3(vocabulary: int = 100) -> PreTrainedModel:
    text = TEXT | {
        "vocab_size": vocabulary,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    special = {"image_token_index": 99, "boi_token_index": 98, "eoi_token_index": 97, "mm_tokens_per_image": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, **special))


def llava() -> PreTrainedModel:
    vision = VISION | {"model_type": "clip_vision_model", "projection_dim": 32}
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_index=99, tie_word_embeddings=False)
    )


@pytest.mark.parametrize("make", [gemma3, llava])
def test_a_text_tower_has_the_same_output_as_within_its_model(tmp_path, make) -> None:
    whole = make().eval()
    whole.save_pretrained(tmp_path / "whole")
    folder = str(tmp_path / "whole")
    assert loading.kind_of(folder) == "causal"
    tower, encoder = loading.language_model(folder, 0), loading.encoder(folder)
    ids = torch.randint(1, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole(input_ids=ids)
        hidden = encoder(input_ids=ids).last_hidden_state
        assert torch.equal(tower(input_ids=ids).logits, expected.logits)
        assert torch.equal(tower.lm_head(hidden), expected.logits)
    for name, part in (("tower", tower), ("encoder", encoder)):
        part.save_pretrained(tmp_path / name)
    assert loading.kind_of(str(tmp_path / "tower")) == "causal"
    again = loading.language_model(str(tmp_path / "tower"), 0)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected.logits)
        assert torch.equal(AutoModel.from_pretrained(tmp_path / "encoder").eval()(input_ids=ids).last_hidden_state, hidden)


@pytest.mark.parametrize("make", [gemma3, llava])
def test_a_tower_that_lacks_a_weight_is_rejected(tmp_path, make) -> None:
    def without(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in state.items() if "layers.1.mlp.up_proj" not in name or "vision" in name}

    folder = save_model(make(), tmp_path, without)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        loading.language_model(folder, 0)


def test_causal_and_bidirectional_models_are_distinguished() -> None:
    assert loading.is_causal(GPT2)
    assert loading.is_causal(LlamaConfig(**TEXT))
    assert loading.is_causal(gemma3().config)
    assert not loading.is_causal(BertConfig(**SMALL))
    assert not loading.is_causal(T5Config(**T5))
    assert not loading.is_causal(BartConfig(**BART))


def test_a_masked_language_model_with_the_name_of_a_causal_one_is_masked(tmp_path) -> None:

    XLMWithLMHeadModel(XLMConfig(vocab_size=50, emb_dim=16, n_layers=1, n_heads=2)).save_pretrained(tmp_path)
    assert loading.kind_of(str(tmp_path)) == "masked"


def test_an_encoder_of_a_causal_architecture_is_bidirectional() -> None:
    assert not loading.is_causal(BertGenerationConfig(architectures=["BertGenerationEncoder"]))
    assert loading.is_causal(BertGenerationConfig(architectures=["BertGenerationDecoder"], is_decoder=True))


def longrope() -> Phi3Config:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    given = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64, "original_max_position_embeddings": 16}
    return Phi3Config(**given, rope_parameters=rope)


def test_the_longest_row_is_one_in_which_a_text_has_the_same_vectors_as_alone() -> None:
    assert loading.max_length(XLNetConfig()) == 1 << 20
    assert loading.max_length(BertConfig(max_position_embeddings=128)) == 128
    assert loading.max_length(RobertaConfig(max_position_embeddings=130, pad_token_id=1)) == 128
    assert loading.max_length(longrope()) == 16
    model: Any = Phi3ForCausalLM(longrope()).eval()
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        alone = model(input_ids=ids[:, :8]).logits
        beside_short = model(input_ids=ids[:, :16]).logits[:, :8]
        beside_long = model(input_ids=ids[:, :17]).logits[:, :8]
    torch.testing.assert_close(beside_short, alone)
    assert not torch.allclose(beside_long, alone, atol=1e-4)


def test_a_family_that_counts_from_its_padding_id_needs_one() -> None:
    with pytest.raises(ModelError, match="roberta counts positions from its padding id, and there is none"):
        loading.max_length(RobertaConfig(pad_token_id=None))
    loading.check_pad_id(BertConfig(), None)
    loading.check_pad_id(RobertaConfig(pad_token_id=1), 1)
    with pytest.raises(ModelError, match="its padding id 1, the new tokenizer pads with 0"):
        loading.check_pad_id(RobertaConfig(pad_token_id=1), 0)


@pytest.mark.parametrize("load", [lambda folder: loading.language_model(folder, 0).model, loading.encoder])
def test_a_soft_cap_that_transformers_would_ignore_is_applied(tmp_path, monkeypatch, load) -> None:
    """As transformers 5.17 does with Gemma 2, which the GPU machine has."""
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    settings = Gemma2Config(**TEXT, head_dim=16, attn_logit_softcapping=0.5)
    model: Any = AutoModelForCausalLM.from_config(settings).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        capped = model.model(input_ids=ids).last_hidden_state
        loaded = load(str(tmp_path))
        found = loaded(input_ids=ids).last_hidden_state
        loaded.save_pretrained(tmp_path / "again")
        again = AutoModel.from_pretrained(tmp_path / "again").eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, capped)
    torch.testing.assert_close(again, capped)


FROM_HUB = """
from data_pipeline.sources.models import model_folder
from trainer.models.loading import model_config
for spec in ("org/model", "org/model@v1"):
    with model_folder(spec) as folder:
        print(folder.rpartition("/")[2][:3], model_config(spec).pad_token_id)
"""


def test_a_revision_on_the_hub_is_loaded(tmp_path: Path) -> None:
    """A cache in the layout of the hub's client, so the client itself finds the revision."""
    place = tmp_path / "models--org--model"
    (place / "refs").mkdir(parents=True)
    for number, name in enumerate(("main", "v1")):
        commit = str(number) * 40
        (place / "refs" / name).write_text(commit)
        BertConfig(pad_token_id=number).save_pretrained(place / "snapshots" / commit)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", FROM_HUB], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["000 0", "111 1"], done.stderr[-2000:]
