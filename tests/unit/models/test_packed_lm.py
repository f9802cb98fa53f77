"""The lean forward against transformers' own, on every family: losses and gradients of each document alone."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedModel

from data_pipeline.feed.masking import Masker
from data_pipeline.feed.target_batch import NextToken, TargetBatch
from data_pipeline.shards import format
from data_pipeline.shards.pack import concat_split
from data_pipeline.tokenizers.ragged import Ragged
from tests.families.configs import COMMON, FAMILIES, VOCABULARY, tiny
from trainer.models import packed_lm
from trainer.models.forward_check import ForwardPath
from trainer.models.packed_lm import PackedLM
from trainer.objectives.linear_cross_entropy import chunked_cross_entropy, linear_cross_entropy

LENGTH = 64
CAUSAL = {name for name, family in FAMILIES.items() if family.causal}
RIGHT = [name for name, family in FAMILIES.items() if family.packs and not family.refused]
SLOW = [name for name in RIGHT if name not in COMMON]
LEAN = ["bert", "roberta", "modernbert", "distilbert", "gpt2", "llama", "mistral", "gemma2", "gemma3_text", "qwen3"]
"""One of each kind of window, head and position, and the most common models."""
# Their routers choose experts by scores that are nearly equal, and rounding decides otherwise in a longer row.
CLOSE = {"mixtral": 1e-4, "qwen3_next": 1e-4}


def module_of(name: str, share: float = 1.0) -> PackedLM:
    """With the way that the check takes on a CPU."""
    module = PackedLM(tiny(name), name in CAUSAL, share)
    kernel, head = FAMILIES[name].way
    module.use_path(ForwardPath(kernel=kernel, head=head))  # type: ignore[arg-type]
    return module


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


@pytest.mark.parametrize("name", [*COMMON, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_losses_and_gradients_of_packed_rows_are_those_of_each_document_alone(name: str) -> None:
    compare(name, packed=True)


@pytest.mark.parametrize("name", LEAN)
def test_losses_and_gradients_of_rows_of_one_document_are_the_model_s(name: str) -> None:
    compare(name, packed=False)


def compare(name: str, packed: bool) -> None:
    module, batch = module_of(name), batch_of(name, packed)
    way = module.path
    module.use_path(ForwardPath(kernel=None, head="whole"))
    theirs = alone(module.model, batch)
    expected = gradients(module.model, theirs)
    module.use_path(way)
    losses = module(batch)
    close = CLOSE.get(name, 1e-5)
    assert (losses - theirs).abs().max() < close
    for weight, gradient in gradients(module.model, losses).items():
        assert (gradient - expected[weight]).abs().max() < close, weight


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LEAN)
def test_the_compiled_graph_is_whole_and_gives_the_same_losses(name: str, packed: bool, monkeypatch) -> None:
    torch._dynamo.reset()  # graphs of other models count against a limit
    module, batch = module_of(name, 1.0 if name in CAUSAL else 0.2), batch_of(name, packed)
    losses = module(batch)
    expected = gradients(module.model, losses)
    compiled = []

    def compile_whole(forward):  # type: ignore[no-untyped-def]
        compiled.append(torch.compile(forward, dynamic=False, fullgraph=True))
        return compiled[0]

    monkeypatch.setattr(packed_lm, "compile_for_training", compile_whole)
    module.compile_graph()
    assert compiled
    again = module(batch)
    assert (again - losses).abs().max() < 1e-5
    for weight, gradient in gradients(module.model, again).items():
        assert (gradient - expected[weight]).abs().max() < 1e-5, weight


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "qwen3", "mistral", "modernbert", "gemma3_text"])
def test_rows_of_one_document_have_no_mask_but_for_windows(name: str, monkeypatch) -> None:
    module, masks = module_of(name).eval(), []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *tensors, **options: masks.append(options["attn_mask"]) or real(*tensors, **options),
    )
    with torch.no_grad():
        module(batch_of(name, packed=False))
        windowed = sum(mask is not None for mask in masks)
        # Every layer of Mistral has a window, one of ModernBERT's three, both of Gemma's.
        assert windowed == {"mistral": 2, "modernbert": 1, "gemma3_text": 2}.get(name, 0)
        module(batch_of(name, packed=True))
        assert all(mask is not None for mask in masks[len(masks) // 2 :])


FLEX = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "modernbert", "llama", "gemma2", "gemma3_text")]


@pytest.mark.parametrize("name", ["mistral", *FLEX])
def test_blocks_of_flex_attention_give_what_a_whole_mask_gives(name: str) -> None:
    """A CPU has FlexAttention's forward only; `make test-gpu` has its backward."""
    module, batch = module_of(name).eval(), batch_of(name, packed=True)
    with torch.no_grad():
        masked = module(batch)
        module.use_path(ForwardPath(kernel="flex", head=module.path.head))
        assert (module(batch) - masked).abs().max() < 1e-5
        flat = batch_of(name, packed=False)
        module.use_path(ForwardPath(kernel="blocks", head=module.path.head))
        by_blocks = module(flat)
        module.use_path(ForwardPath(kernel=None, head="whole"))
        assert (by_blocks - module(flat)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_every_place_that_may_be_asked_is_and_rows_of_weight_0_are_not(name: str) -> None:
    batch = batch_of(name, packed=True)
    # Seven pieces of documents, whose last tokens predict nothing; a fifth of 64, 64 and 46 tokens, rounded.
    assert len(batch.labels) == (174 - 7 if name == "gpt2" else 13 + 13 + 9)
    assert batch_of(name, True, 0.0).counts(1).tolist() == [0]


def test_reasons_against_the_fast_path_are_reported() -> None:
    modules = {name: PackedLM(tiny(name), name in CAUSAL) for name in ("bert", "mpnet", "gemma2", "granite")}
    for module in modules.values():
        module.check(LENGTH)
    assert modules["bert"].slow_reasons() == []
    assert "mpnet is trained on rows of one document each" in modules["mpnet"].slow_reasons()[0]
    assert "packed rows with sdpa attention differ by" in modules["mpnet"].slow_reasons()[0]
    assert "the head of granite is no plain linear layer" in modules["granite"].slow_reasons()[0]
    assert "the head of gemma2 is no plain linear layer" in modules["gemma2"].slow_reasons()[0]


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
        losses = chunked_cross_entropy(layer, layer.out_features, hidden, labels, chunk)
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
    with pytest.raises(RuntimeError, match="weigh the same"):
        (losses * torch.tensor([1.0, 2.0, 1.0])).sum().backward()


def test_a_loss_that_is_no_number_has_such_a_gradient_and_no_error() -> None:
    """The guard leaves such a step out; an error would end the attempt, and on a GPU its context."""
    hidden, weight = torch.ones(3, 4, requires_grad=True), torch.ones(5, 4)
    losses = linear_cross_entropy(hidden, weight, None, torch.tensor([0, -1, 2]))
    for weights in ([1.0, 1, math.nan], [math.nan, 1, 1]):
        with pytest.raises(RuntimeError, match="targets must weigh the same"):
            torch.autograd.grad(losses, hidden, torch.tensor(weights), retain_graph=True)
    assert torch.autograd.grad(losses, hidden, torch.tensor([math.nan] * 3))[0].isnan()[[0, 2]].all()
