"""Early exits: the vector behind layer k is that of a model of k layers, and computes no more."""

from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    OPTConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

from data_pipeline.errors import ModelError
from tests.conftest import FAMILIES, tiny_model
from trainer.models.exits import Exits, between_layers, final_norm, first_layers, layer_list

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
KINDS: dict[str, Any] = {
    "bert": BertConfig(**SMALL, num_hidden_layers=4),
    "xlm-roberta": XLMRobertaConfig(**SMALL, num_hidden_layers=4),
    "distilbert": DistilBertConfig(vocab_size=64, dim=16, n_heads=2, hidden_dim=32, n_layers=4),
    "modernbert": ModernBertConfig(**SMALL, num_hidden_layers=4, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_head=2, n_layer=4),
    "llama": LlamaConfig(**SMALL, num_hidden_layers=4, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SMALL, num_hidden_layers=4, num_key_value_heads=1, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, num_hidden_layers=4, num_key_value_heads=1, head_dim=8),
    "opt": OPTConfig(
        vocab_size=64, hidden_size=16, num_attention_heads=2, ffn_dim=32, num_hidden_layers=4, word_embed_proj_dim=16
    ),
}


@pytest.fixture(params=sorted(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = AutoModel.from_config(KINDS[request.param])
    for name, weight in made.named_parameters():
        if "norm" in name.lower() or "ln_" in name:  # a fresh norm's weights are 1 and 0, and prove nothing
            torch.nn.init.normal_(weight, 1.0, 0.3)
    return made.eval()


def test_an_exit_has_the_states_of_a_model_of_so_many_layers(model: Any) -> None:
    ids = torch.randint(5, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shallow = {count: first_layers(model, count) for count in (1, 3)}
    exits = Exits(model, (1, 3))
    with torch.no_grad():
        whole = model(**inputs).last_hidden_state
        states = exits.take()
        for count, state in zip((1, 3), states, strict=True):
            assert torch.allclose(shallow[count](**inputs).last_hidden_state, state, atol=1e-6)
            assert (state - whole).abs().max() > 1e-3
    assert shallow[1].get_input_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model(**inputs).last_hidden_state, whole)  # the model itself has kept its layers


def test_a_shallow_model_runs_no_layer_behind_its_last(model: Any) -> None:
    calls = list[int]()
    for number, layer in enumerate(model.get_submodule(layer_list(model))):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    ids = torch.tensor([[5, 6, 7]])
    first_layers(model, 2)(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert calls == [0, 1]


def test_a_decoder_has_a_final_norm_and_bert_has_none() -> None:
    assert final_norm(AutoModel.from_config(KINDS["bert"])) is None
    assert type(final_norm(AutoModel.from_config(KINDS["gpt2"]))) is torch.nn.LayerNorm


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    albert = AlbertModel(AlbertConfig(**SMALL, num_hidden_layers=4, embedding_size=16))
    with pytest.raises(ModelError, match="it has no list of layers to leave early"):
        Exits(albert, (2,))


@pytest.mark.parametrize("count", [0, 4, 7])
def test_an_exit_lies_within_the_model(count: int) -> None:
    with pytest.raises(ModelError, match=f"it has 4 layers, so that there is no exit behind layer {count}"):
        Exits(AutoModel.from_config(KINDS["bert"]), (count,))


def test_a_function_is_called_between_layers_and_changes_nothing(english: list[str]) -> None:
    model = tiny_model(FAMILIES["wordpiece"](english)).bert.eval()
    ids = torch.arange(5, 15)[None]
    before = model(input_ids=ids).last_hidden_state
    calls: list[torch.Tensor] = []

    def call() -> None:
        if not calls:
            calls.append(ids)
            calls.append(model(input_ids=ids).last_hidden_state)  # the model itself, in the midst of a pass

    between_layers(model, call)
    assert torch.equal(model(input_ids=ids).last_hidden_state, before)
    assert torch.equal(calls[1], before)
