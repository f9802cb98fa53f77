"""Plans applied to whole models: encoders, decoders and encoder-decoders, tied and untied."""

import json

import numpy as np
import pytest
import tokenizers
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers import train
from tests.conftest import FAMILIES, tiny_decoder, tiny_model
from trainer.models import loading
from trainer.transfer import apply
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS, aligned
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Problem, assemble
from trainer.word_vectors.texts import Texts


@pytest.fixture(scope="module")
def random_plan(problem: Problem) -> TransferPlan:
    return assemble(problem, aligned.place(problem, aligned.AlignedConfig()), "aligned")


def untied(model):  # type: ignore[no-untyped-def]
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5)))
    return model


def seq2seq(tokenizer, kind: str, tied: bool):  # type: ignore[no-untyped-def]
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id or tokenizer.sep_token_id}
    shared = ids | {"vocab_size": len(tokenizer), "d_model": 32, "tie_word_embeddings": tied}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if kind == "t5":
            start = {"decoder_start_token_id": tokenizer.pad_token_id}
            model = T5ForConditionalGeneration(T5Config(d_kv=16, d_ff=64, num_layers=2, num_heads=2, **start, **shared))
        else:
            sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
            sides |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "bos_token_id": tokenizer.cls_token_id}
            model = BartForConditionalGeneration(BartConfig(**sides, **shared, forced_eos_token_id=ids["eos_token_id"]))
            torch.nn.init.normal_(model.final_logits_bias)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model.eval()


def answers(model, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        both = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **both).logits[0]


MODELS = {
    ("masked", True): (tiny_model, AutoModelForMaskedLM),
    ("masked", False): (lambda t: untied(tiny_model(t)), AutoModelForMaskedLM),
    ("gpt2", True): (lambda t: tiny_decoder(t, "gpt2"), AutoModelForCausalLM),
    ("gpt2", False): (lambda t: tiny_decoder(t, "gpt2", tied=False), AutoModelForCausalLM),
    ("llama", True): (lambda t: tiny_decoder(t, "llama"), AutoModelForCausalLM),
    ("llama", False): (lambda t: tiny_decoder(t, "llama", tied=False), AutoModelForCausalLM),
    ("t5", True): (lambda t: seq2seq(t, "t5", True), AutoModelForSeq2SeqLM),
    ("bart", True): (lambda t: seq2seq(t, "bart", True), AutoModelForSeq2SeqLM),
}


@pytest.mark.parametrize(("kind", "tied"), sorted(MODELS))
def test_a_grafted_model_has_the_same_output_on_shared_tokens(problem, random_plan, tmp_path, kind: str, tied: bool) -> None:
    """On text of copied tokens the logits of these tokens are the same: only the vocabulary changed."""
    make, auto = MODELS[kind, tied]
    model = make(problem.source)
    shared = np.flatnonzero(problem.shared >= 0)
    ordinary = torch.from_numpy(shared[:60])
    before = answers(model, torch.from_numpy(problem.shared)[ordinary][None])[:, problem.shared[shared]]
    graft(model, random_plan, problem.target)
    model.save_pretrained(tmp_path)
    problem.target.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    assert (before - answers(again, ordinary[None])[:, shared]).abs().max() < 1e-5
    assert again.config.vocab_size % 128 == 0
    assert (again.get_input_embeddings().weight.data_ptr() == again.get_output_embeddings().weight.data_ptr()) == tied
    assert AutoTokenizer.from_pretrained(tmp_path)("test").input_ids == problem.target("test").input_ids
    assert AutoModel.from_pretrained(tmp_path) is not None
    assert loading.kind_of(str(tmp_path)) == {"masked": "masked", "t5": "seq2seq", "bart": "seq2seq"}.get(kind, "causal")


@pytest.mark.parametrize(("kind", "tied"), sorted(MODELS))
def test_special_ids_follow_their_tokens(problem, random_plan, kind: str, tied: bool) -> None:
    """Every special id in the config still means the same token."""
    model = MODELS[kind, tied][0](problem.source)
    settings = [c for c in (model.config, getattr(model, "generation_config", None)) if c is not None]
    before = [{name: value for name, value in vars(c).items() if name.endswith("_token_id")} for c in settings]
    graft(model, random_plan, problem.target)
    for old, new in zip(before, map(vars, settings), strict=True):
        for name, number in old.items():
            if number is not None:
                token = problem.source.convert_ids_to_tokens(number)
                assert problem.target.convert_ids_to_tokens(new[name]) == token, name


def test_a_plan_fits_another_model_with_the_same_tokenizer(problem, random_plan, tmp_path) -> None:
    """Saved, loaded and applied to another checkpoint with the same tokenizer, and to one of another width."""
    random_plan.save(str(tmp_path))
    sibling = tiny_decoder(problem.source, "llama")
    old = sibling.get_input_embeddings().weight.detach().clone()
    graft(sibling, TransferPlan.load(str(tmp_path)), problem.target)
    rows = sibling.get_input_embeddings().weight
    copies = random_plan.copies()
    assert torch.equal(rows[copies], old[random_plan.indices[random_plan.indptr[copies]]])
    assert torch.allclose(rows[len(random_plan) :], rows[: len(random_plan)].mean(dim=0), atol=1e-6)


def test_gaps_in_the_ids_and_padded_matrices_are_handled(english, greek) -> None:
    """Ids without a token get the mean row; a matrix may have more rows than the tokenizer has ids."""
    source = FAMILIES["wordpiece"](english)
    spec = json.loads(source.backend_tokenizer.to_str())
    spec["model"]["vocab"]["late"] = len(source) + 3
    gapped = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(spec)), unk_token="[UNK]")
    texts = Texts(corpus=lambda: iter(greek), anchors=english[:50], positives=greek[:50])
    problem = Problem(source, gapped, texts, seed=3)
    random_plan = assemble(problem, METHODS["random"].place(problem, METHODS["random"].config()), "random")
    assert random_plan.provenance[-4:].tolist() == [Provenance.FILLING] * 3 + [Provenance.RANDOM]
    new = apply.embeddings(random_plan.pad_to(len(random_plan) + 9), torch.randn(problem.source_rows + 57, 8))
    real = [*range(len(source)), len(random_plan) - 1]
    assert torch.allclose(
        new[[*range(len(source), len(source) + 3), *range(len(random_plan), len(new))]], new[real].mean(dim=0)
    )
    assert (new[len(random_plan) - 1] != new[real].mean(dim=0)).all()


def test_a_padding_id_that_would_shift_positions_is_rejected(english, greek) -> None:
    source = FAMILIES["byte_level"](english)
    model = tiny_model(source)
    target = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1500))
    texts = Texts(corpus=lambda: iter(greek), anchors=english[:50], positives=greek[:50])
    problem = Problem(source, target, texts, seed=3)
    target.pad_token = "</s>"
    with pytest.raises(ModelError, match="counts positions"):
        graft(model, assemble(problem, aligned.place(problem, aligned.AlignedConfig()), "aligned"), target)


# Rows that stand for no token


def far_below_zero(tokenizer) -> GPT2LMHeadModel:  # type: ignore[no-untyped-def]
    """A GPT-2 whose logits are near -40, like the real one's: hidden states and rows share a constant direction."""
    model = tiny_decoder(tokenizer, "gpt2")
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 20.0
        model.transformer.ln_f.weight[0] = 0.0
        model.get_input_embeddings().weight[:, 0] = -2.0
    return model


FILLED = MODELS | {("gpt2 near -40", True): (far_below_zero, AutoModelForCausalLM)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "tied"), sorted(FILLED))
def test_a_row_without_a_token_is_never_predicted(problem, random_plan, kind: str, tied: bool, dtype: torch.dtype) -> None:
    """Its logit is the mean of the others, or its bias excludes it: never the highest, at most the mean probability."""
    model = FILLED[kind, tied][0](problem.source).to(dtype)
    graft(model, random_plan, problem.target)
    ids = torch.randint(0, len(random_plan), (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits = model(input_ids=ids, **both).logits.float()
    filling, real = logits[..., len(random_plan) :], logits[..., : len(random_plan)]
    assert filling.shape[-1] > 0
    assert (filling.amax(dim=-1) < real.amax(dim=-1)).all()
    share = logits.softmax(dim=-1)[..., len(random_plan) :]
    assert share.max() <= 1 / len(random_plan)
    if kind == "gpt2 near -40":
        assert -60 < real.mean() < -30
    if model.can_generate():
        assert model.generation_config.suppress_tokens == list(range(len(random_plan), logits.shape[-1]))


def test_generation_never_emits_an_id_without_a_token(problem, random_plan, tmp_path) -> None:
    """Plain transformers from the saved folder, sampling from a nearly uniform distribution."""
    model = far_below_zero(problem.source)
    model.generation_config.suppress_tokens = [
        int(random_plan.indices[random_plan.indptr[row]]) for row in random_plan.copies()[20:22]
    ]
    graft(model, random_plan, problem.target)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(random_plan.copies()[20:22].tolist()) < set(again.generation_config.suppress_tokens)
    torch.manual_seed(0)
    ids = again.generate(torch.tensor([[5]] * 8), max_new_tokens=100, do_sample=True, temperature=50.0, pad_token_id=0)
    assert ids.max() < len(random_plan)
    with torch.no_grad():  # without that list, greedy decoding is as safe by the rows themselves
        assert again(ids).logits.argmax(dim=-1).max() < len(random_plan)


def test_untied_random_rows_are_independent_draws(problem) -> None:
    """The same draw in both matrices made their rows copies of each other."""
    plan = assemble(problem, METHODS["random"].place(problem, METHODS["random"].config()), "random")
    model = tiny_decoder(problem.source, "llama", tied=False)
    graft(model, plan, problem.target)
    rows = problem.new
    inputs, outputs = (
        part.weight.detach()[rows].double().numpy() for part in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    centred = [(part - part.mean(axis=0)) / part.std(axis=0) for part in (inputs, outputs)]
    correlation = float((centred[0] * centred[1]).mean())
    assert abs(correlation) < 4 / np.sqrt(inputs.size)
