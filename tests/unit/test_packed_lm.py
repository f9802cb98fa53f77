"""The lean forward against transformers' own, on every family: losses and gradients of each document alone."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)  # fmt: skip

from data_pipeline.feed.masking import Masker
from data_pipeline.feed.targets import NextToken, TargetBatch
from data_pipeline.ragged import Ragged
from data_pipeline.shards import format
from data_pipeline.shards.pack import concat_split
from trainer.models.packed_lm import PackedLM
from trainer.objectives.linear_cross_entropy import chunked_cross_entropy, linear_cross_entropy

VOCABULARY, LENGTH = 300, 64
_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
          "max_position_embeddings": 80}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**_SMALL),
    "roberta": RobertaConfig(**_SMALL, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**_SMALL, pad_token_id=1),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=80, attn_pdrop=0.0, embd_pdrop=0.0,
                       resid_pdrop=0.0, bos_token_id=1, eos_token_id=1),
    "llama": LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=64, max_position_embeddings=80),
    "distilbert": DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64, dropout=0.0,
                                   attention_dropout=0.0, max_position_embeddings=80),
}  # fmt: skip
LEAN = [name for name in CONFIGS if name != "distilbert"]
CAUSAL = {"gpt2", "llama"}


def made(name: str) -> PreTrainedModel:
    """With weights that are not so small that everything is alike."""
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
    model: PreTrainedModel = kind.from_config(CONFIGS[name])
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return model.train()


def batch_of(name: str, packed: bool, weight: float = 1.0) -> TargetBatch:
    """Three rows: documents of several lengths and padding, or one document each."""
    draw = np.random.default_rng(5)
    sizes = (20, 50, 30, 64, 10) if packed else (LENGTH,) * 3
    rows = concat_split(Ragged.of([draw.integers(5, VOCABULARY, size).tolist() for size in sizes]), LENGTH, 1)
    tags = {tag: pa.array([0] * len(rows.ids)) for tag in ("stream", "epoch")} | {"row": pa.array(range(len(rows.ids)))}
    table = format.text_rows(rows, VOCABULARY)
    for tag, values in (tags | {"weight": pa.array([weight] * len(rows.ids))}).items():
        table = table.append_column(tag, values)
    masker = Masker(length=LENGTH, mask_id=4, special_ids=(0, 1, 2, 3, 4), vocab_size=VOCABULARY, probability=0.2, seed=1)
    return NextToken(length=LENGTH)(table) if name in CAUSAL else masker(table)


def alone(model: PreTrainedModel, batch: TargetBatch) -> torch.Tensor:
    """Losses by transformers' whole forward on one document at a time."""
    logits = torch.zeros(batch.input_ids.numel(), VOCABULARY)
    for row, segments in enumerate(batch.segments):
        for number in segments[segments >= 0].unique():
            places = torch.nonzero(segments == number)[:, 0]
            logits = logits.index_copy(0, row * LENGTH + places, model(batch.input_ids[row, places][None]).logits[0])
    return torch.nn.functional.cross_entropy(logits[batch.places], batch.labels, reduction="none")


def gradients(model: PreTrainedModel, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (losses.sum() / len(losses)).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_losses_and_gradients_are_those_of_each_document_alone(name: str, packed: bool) -> None:
    model, batch = made(name), batch_of(name, packed)
    model.set_attn_implementation("eager")
    theirs = alone(model, batch)
    expected = gradients(model, theirs)
    module = PackedLM(model, name in CAUSAL)
    losses = module(batch)
    assert (losses - theirs).abs().max() < 1e-5
    for weight, gradient in gradients(model, losses).items():
        assert (gradient - expected[weight]).abs().max() < 1e-5, weight


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LEAN)
def test_the_compiled_graph_is_one_and_says_the_same(name: str, packed: bool) -> None:
    torch._dynamo.reset()  # graphs of other models count against a limit
    model, batch = made(name), batch_of(name, packed)
    module = PackedLM(model, name in CAUSAL, 1.0 if name in CAUSAL else 0.2)
    losses = module(batch)
    expected = gradients(model, losses)
    module._graph = torch.compile(module._losses, dynamic=False, fullgraph=True)
    again = module(batch)
    assert (again - losses).abs().max() < 1e-5
    for weight, gradient in gradients(model, again).items():
        assert (gradient - expected[weight]).abs().max() < 1e-5, weight


@pytest.mark.parametrize("name", LEAN)
def test_rows_of_one_document_have_no_mask_and_packed_ones_may_have_blocks(name: str, monkeypatch) -> None:
    module, masks = PackedLM(made(name), name in CAUSAL).eval(), []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda *tensors, **options: masks.append(options["attn_mask"]) or real(*tensors, **options),
    )  # fmt: skip
    with torch.no_grad():
        module(batch_of(name, packed=False))
        assert masks
        assert all(mask is None for mask in masks)
        masked = module(batch_of(name, packed=True))
        assert masks[-1] is not None
        count = len(masks)
        module._attention.blocks = True  # as on a GPU; a CPU has FlexAttention's forward only
        assert (module(batch_of(name, packed=True)) - masked).abs().max() < 1e-5
        assert all(mask is None or mask.shape[1] > 1 for mask in masks[count:])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_every_place_that_may_be_asked_is_and_rows_of_weight_0_are_not(name: str) -> None:
    batch = batch_of(name, packed=True)
    # Seven pieces of documents, whose last tokens predict nothing; a fifth of 64, 64 and 46 tokens, rounded.
    assert len(batch.labels) == (174 - 7 if name == "gpt2" else 13 + 13 + 9)
    assert batch_of(name, True, 0.0).counts(1).tolist() == [0]


def test_an_architecture_that_is_not_known_says_so() -> None:
    assert "distilbert is trained by its own forward" in PackedLM(made("distilbert"), False).slow()[0]
    assert all(PackedLM(made(name), name in CAUSAL).slow() == [] for name in LEAN)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 5, 100])
@pytest.mark.parametrize("by_layer", [False, True])
def test_the_chunked_loss_is_torch_s(by_layer: bool, bias: bool, chunk: int | None) -> None:
    torch.manual_seed(1)
    hidden, layer = torch.randn(17, 8, requires_grad=True), torch.nn.Linear(8, 40, bias=bias)
    weight, offset = layer.weight, layer.bias
    labels = torch.randint(0, 40, (17,))
    labels[[2, 9]] = -100
    leaves = [leaf for leaf in (hidden, weight, offset) if leaf is not None]
    if by_layer:
        losses = chunked_cross_entropy(layer, hidden, labels, chunk)
    else:
        losses = linear_cross_entropy(hidden, weight, offset, labels, chunk)
    found = torch.autograd.grad(losses.sum() * 0.3, leaves)
    theirs = torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, offset), labels, reduction="none")
    assert torch.allclose(losses, theirs, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(theirs.sum() * 0.3, leaves), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_chunked_loss_refuses_targets_that_weigh_differently() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1, 2]))
    with pytest.raises(AssertionError, match="weigh the same"):
        (losses * torch.tensor([1.0, 2.0, 1.0])).sum().backward()
