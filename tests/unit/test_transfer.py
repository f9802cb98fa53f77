"""The plan, its application, and every method against a brute-force reading of its paper."""

import collections

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from data_pipeline import keyed_random
from data_pipeline.errors import DataError, ModelError
from data_pipeline.tokenizers import train
from tests.conftest import FAMILIES, tiny_model
from trainer.static import dictionary, fasttext
from trainer.static.fasttext import FastTextConfig
from trainer.transfer import apply, graft, plan
from trainer.transfer.methods import METHODS, aligned, focus, fvt, wechsel
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Problem, Texts, assemble

SMALL = FastTextConfig(dim=16, epochs=2, min_count=2, buckets=2000)
CONFIGS = {
    "wechsel": wechsel.WechselConfig(fasttext=SMALL, neighbours=4),
    "focus": focus.FocusConfig(fasttext=SMALL),
    "aligned": aligned.AlignedConfig(),
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def problem(request: pytest.FixtureRequest, english, greek, pairs) -> Problem:
    source = FAMILIES[request.param](english)
    target = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1500))
    texts = Texts(corpus=lambda: iter(greek), anchors=english, positives=[row["positive"] for row in pairs])
    return Problem(source, target, texts, seed=3)


@pytest.fixture(scope="module", params=sorted(METHODS))
def made(request: pytest.FixtureRequest, problem: Problem) -> plan.TransferPlan:
    config = CONFIGS.get(request.param, METHODS[request.param].config())
    return assemble(problem, METHODS[request.param].rows(problem, config), request.param)


def old_rows(problem: Problem, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(problem.source_rows + 3, 24, generator=torch.Generator().manual_seed(0)).to(dtype)


# Every method


def test_mixtures_sum_to_one_and_fates_to_all(made: plan.TransferPlan) -> None:
    sums = made.dense().sum(dim=1)
    code = torch.from_numpy(made.provenance)
    mixed = ~torch.isin(code, torch.tensor([Provenance.RANDOM, Provenance.MEAN, Provenance.ZERO]))
    assert torch.allclose(sums[mixed], torch.ones(int(mixed.sum())), atol=1e-5)
    assert (sums[~mixed] == 0).all()
    assert sum(made.fates().values()) == len(made)
    assert (made.weights > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_shared_token_keeps_its_row_to_the_last_bit(made, problem, dtype) -> None:
    old = old_rows(problem, dtype)
    new = apply.embeddings(made, old)
    copied = np.flatnonzero(problem.shared >= 0)
    assert len(copied) > 50
    assert torch.equal(new[copied], old[problem.shared[copied]])
    assert new.dtype == dtype
    assert new.isfinite().all()


def test_applying_is_the_matrix_product(made, problem) -> None:
    old = old_rows(problem, torch.float64)
    mixed = np.flatnonzero(np.diff(made.indptr) > 0)
    expected = made.dense().double() @ old[: problem.source_rows]
    assert (apply.embeddings(made, old)[mixed] - expected[mixed]).abs().max() < 1e-6
    bias = torch.randn(problem.source_rows, generator=torch.Generator().manual_seed(1)).double()
    found = apply.bias(made, bias)
    assert (found[mixed] - (made.dense().double() @ bias)[mixed]).abs().max() < 1e-6
    rest = np.isin(made.provenance, [Provenance.RANDOM, Provenance.MEAN])
    assert torch.allclose(found[rest], bias.mean().expand(int(rest.sum())))


def test_a_plan_survives_the_disk(made, tmp_path) -> None:
    made.save(str(tmp_path))
    again = plan.load(str(tmp_path))
    for name in ("indptr", "indices", "weights", "provenance", "keys"):
        assert (getattr(again, name) == getattr(made, name)).all()
    assert again.fates() == made.fates()


def test_a_second_run_makes_the_same_plan(problem, made) -> None:
    config = CONFIGS.get(made.method, METHODS[made.method].config())
    again = assemble(problem, METHODS[made.method].rows(problem, config), made.method)
    assert (again.indices == made.indices).all()
    assert (again.weights == made.weights).all()


# The baselines


def test_random_rows_have_the_old_moments_and_follow_the_token(problem) -> None:
    made = assemble(problem, METHODS["random"].rows(problem, METHODS["random"].config()), "random")
    old = old_rows(problem)
    new = apply.embeddings(made, old)[made.provenance == Provenance.RANDOM]
    known = old[: problem.source_rows]
    assert (new.mean(dim=0) - known.mean(dim=0)).abs().max() < 0.2
    assert (new.std(dim=0) / known.std(dim=0) - 1).abs().max() < 0.2
    # The same token in another vocabulary, at another id, has the same row.
    token = problem.tokens[int(np.flatnonzero(made.provenance == Provenance.RANDOM)[5])]
    shuffled = plan.TransferPlan(
        indptr=np.zeros(3, np.int64), indices=np.empty(0, np.int32), weights=np.empty(0, np.float32),
        provenance=np.full(2, Provenance.RANDOM, np.uint8),
        keys=np.array([9, keyed_random.key(token.key())], np.uint64),
        source_rows=problem.source_rows, seed=problem.seed, method="random",
    )  # fmt: skip
    assert torch.equal(apply.embeddings(shuffled, old)[1], new[5])


def test_mean_rows_are_the_mean(problem) -> None:
    made = assemble(problem, METHODS["mean"].rows(problem, METHODS["mean"].config()), "mean")
    old = old_rows(problem)
    new = apply.embeddings(made, old)[made.provenance == Provenance.MEAN]
    assert torch.allclose(new, old[: problem.source_rows].mean(dim=0).expand_as(new))


# FVT: Gee et al. 2022, section 3


def test_fvt_is_the_mean_of_the_old_pieces(problem) -> None:
    rows = fvt.rows(problem, fvt.FvtConfig())
    made = assemble(problem, rows, "fvt")
    old = old_rows(problem)
    new = apply.embeddings(made, old)
    checked = 0
    for number in rows.ids:
        token = problem.tokens[number]
        if not token.word_start:
            continue
        text = token.payload.decode()
        pieces = [i for i in problem.source(text, add_special_tokens=False).input_ids if i != problem.source.unk_token_id]
        assert torch.allclose(new[number], old[pieces].mean(dim=0), atol=1e-6)
        checked += 1
    assert checked > 3


def test_fvt_does_not_take_a_continuation_for_a_word(english) -> None:
    """Split by its own tokenizer a continuation is itself, not the word of the same letters."""
    source = FAMILIES["wordpiece"](english)
    texts = Texts(corpus=lambda: iter(()), anchors=[], positives=[])
    tokens = enumerate(Problem(source, source, texts, seed=0).tokens)
    continuing = [(number, token) for number, token in tokens if token.role is None and not token.word_start]
    assert len(continuing) > 100
    found = [fvt.split(source, token) == [number] for number, token in continuing]
    assert np.mean(found) > 0.9


# Aligned: counted by brute force


def test_aligned_is_the_normalised_dice_of_the_best_partners(problem) -> None:
    config = aligned.AlignedConfig(top=3, min_count=2)
    rows = aligned.rows(problem, config)
    texts = problem.texts
    source = [set(problem.source(a, add_special_tokens=False).input_ids) - {problem.source.unk_token_id} for a in texts.anchors]
    target = [
        set(problem.target(a, add_special_tokens=False).input_ids) | set(problem.target(p, add_special_tokens=False).input_ids)
        for a, p in zip(texts.anchors, texts.positives, strict=True)
    ]
    alone = collections.Counter(s for row in source for s in row)
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    for place in range(0, len(rows.ids), 11):
        t = int(rows.ids[place])
        where = [i for i, row in enumerate(target) if t in row]
        both = collections.Counter(s for i in where for s in source[i])
        scores = {s: 2 * n / (alone[s] + len(where)) for s, n in both.items() if n >= 2}
        best = sorted(scores, key=lambda s: (-scores[s], s))[:3]
        part = slice(bounds[place], bounds[place + 1])
        assert rows.indices[part].tolist() == best
        expected = np.array([scores[s] for s in best]) / sum(scores[s] for s in best)
        assert np.abs(rows.weights[part] - expected).max() < 1e-6
    placed = set(rows.ids.tolist())
    for t in problem.new:
        count = sum(int(t) in row for row in target)
        assert (int(t) in placed) or count < 2 or not any(
            n >= 2 for n in collections.Counter(s for i, row in enumerate(target) if int(t) in row for s in source[i]).values()
        )  # fmt: skip


# FOCUS and WECHSEL: section 3 of each, token by token, on the same fastText vectors


def test_focus_is_sparsemax_over_the_shared_tokens(problem, monkeypatch) -> None:
    kept = {}
    real = fasttext.train
    monkeypatch.setattr(focus.fasttext, "train", lambda *a: kept.setdefault("vectors", real(*a)))
    rows = focus.rows(problem, CONFIGS["focus"])
    vectors = kept["vectors"]
    names = [focus._name(token, number) for number, token in enumerate(problem.tokens)]
    basis = [t for t in np.flatnonzero(problem.shared >= 0) if problem.tokens[t].role is None and names[t] in vectors]
    a = vectors.vectors(names[t] for t in basis).double().numpy()
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    for place in range(0, len(rows.ids), 37):
        v = vectors.vectors([names[rows.ids[place]]])[0].double().numpy()
        z = a @ (v / np.linalg.norm(v))
        ordered = np.sort(z)[::-1]
        k = max(i for i in range(1, len(z) + 1) if 1 + i * ordered[i - 1] > ordered[:i].sum())
        weights = np.maximum(z - (ordered[:k].sum() - 1) / k, 0)
        found = dict(zip(rows.indices[bounds[place] : bounds[place + 1]], rows.weights[bounds[place] : bounds[place + 1]],
                         strict=True))  # fmt: skip
        for t, weight in zip(basis, weights, strict=True):
            assert abs(found.get(problem.shared[t], 0.0) - weight) < 1e-5


def test_wechsel_is_softmax_over_the_nearest_old_tokens(problem, monkeypatch) -> None:
    kept = []
    real = fasttext.train
    monkeypatch.setattr(wechsel.fasttext, "train", lambda *a: kept.append(real(*a)) or kept[-1])
    config = CONFIGS["wechsel"]
    rows = wechsel.rows(problem, config)
    source, target = kept
    pairs = dictionary.mine(problem.texts.anchors, problem.texts.positives)
    rotation = wechsel.align(pairs, source, target, "").double().numpy()
    from data_pipeline.tokenizers.canonical import canonical_tokens

    old = {}
    for number, token in enumerate(canonical_tokens(problem.source)):
        text = wechsel._text(token)
        vector = source.vectors([text])[0].double().numpy() if text else np.zeros(16)
        if np.linalg.norm(vector) > 0:
            old[number] = vector @ rotation / np.linalg.norm(vector @ rotation)
    ids, matrix = list(old), np.stack(list(old.values()))
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    for place in range(0, len(rows.ids), 41):
        v = target.vectors([wechsel._text(problem.tokens[rows.ids[place]])])[0].double().numpy()
        cosines = matrix @ (v / np.linalg.norm(v))
        best = np.sort(cosines)[::-1][: config.neighbours]
        weights = np.exp(best / config.temperature)
        part = slice(bounds[place], bounds[place + 1])
        assert np.abs(np.sort(rows.weights[part])[::-1] - weights / weights.sum()).max() < 1e-4
        chosen = np.sort(cosines[[ids.index(i) for i in rows.indices[part]]])[::-1]
        assert np.abs(chosen - best).max() < 1e-5


def test_wechsel_without_a_usable_dictionary_says_so(problem, tmp_path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text("xyzzy\tplugh\n")
    with pytest.raises(DataError, match="none of its 1 pairs"):
        wechsel.rows(problem, wechsel.WechselConfig(fasttext=SMALL, dictionary=str(path)))
    path.write_text("no tab here\n")
    with pytest.raises(DataError, match="line 1"):
        wechsel.rows(problem, wechsel.WechselConfig(fasttext=SMALL, dictionary=str(path)))


def test_a_mined_dictionary_finds_a_cipher() -> None:
    """A language that replaces each word by another: every mined pair must be right."""
    words = [f"{a}{b}" for a in "bcdfghklmnp" for b in "aeiou"]
    cipher = dict(zip(words, [word[::-1] + "q" for word in words], strict=True))
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.choice(words, 6)) for _ in range(800)]
    mined = dictionary.mine(lines, [" ".join(cipher[word] for word in line.split()) for line in lines])
    assert len(mined) > 50
    assert all(cipher[left] == right for left, right in mined)


# Grafting a whole model


@pytest.mark.parametrize("tie", [True, False])
def test_a_grafted_model_answers_as_before_on_shared_tokens(problem, tmp_path, tie) -> None:
    """Text of copied tokens only has the same logits for them: nothing but the vocabulary changed."""
    model = tiny_model(problem.source)
    model.config.tie_word_embeddings = tie
    if not tie:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5)))
    made = assemble(problem, aligned.rows(problem, aligned.AlignedConfig()), "aligned")
    shared = np.flatnonzero(problem.shared >= 0)
    ordinary = torch.from_numpy(shared[:60])
    before_ids = torch.from_numpy(problem.shared)[ordinary][None]
    with torch.no_grad():
        before = model(before_ids).logits[0][:, problem.shared[shared]]
        graft.graft(model, made, problem.target)
        model.save_pretrained(tmp_path)
        problem.target.save_pretrained(tmp_path)
        again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
        after = again(ordinary[None]).logits[0][:, shared]
    assert (before - after).abs().max() < 1e-5
    assert again.config.vocab_size % 128 == 0
    assert again.config.pad_token_id == problem.target.pad_token_id
    assert (again.get_input_embeddings().weight.data_ptr() == again.get_output_embeddings().weight.data_ptr()) == tie
    assert AutoTokenizer.from_pretrained(tmp_path)("test").input_ids == problem.target("test").input_ids
    assert AutoModel.from_pretrained(tmp_path) is not None


def test_embeddings_too_few_for_the_tokenizer_are_refused(problem, made) -> None:
    with pytest.raises(ModelError, match="only 10 rows"):
        apply.embeddings(made, torch.zeros(10, 4))
