"""The plan, its application, and every method against a brute-force implementation of its paper."""

import collections
import dataclasses
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from data_pipeline import keyed_random
from data_pipeline.errors import ArtifactError, DataError, ModelError
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.canonical import family_of
from tests.conftest import FAMILIES, tiny_model
from trainer.transfer import apply, plan
from trainer.transfer.diff import diff
from trainer.transfer.methods import METHODS, aligned, focus, fvt, ofa, tokenadapt, wechsel
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Problem, assemble
from trainer.word_alignment import dictionary
from trainer.word_vectors import VECTORS, fasttext, word_space
from trainer.word_vectors.fasttext import FastTextConfig
from trainer.word_vectors.texts import Texts
from trainer.word_vectors.word_space import SpaceConfig

SMALL = FastTextConfig(dim=16, epochs=2, min_count=2, buckets=2000)
CONFIGS = {
    "wechsel": wechsel.WechselConfig(space=SpaceConfig(fasttext=SMALL), neighbours=4),
    "ofa": ofa.OfaConfig(space=SpaceConfig(fasttext=SMALL)),
    "tokenadapt": tokenadapt.TokenadaptConfig(space=SpaceConfig(fasttext=SMALL)),
    "focus": focus.FocusConfig(fasttext=SMALL),
    "aligned": aligned.AlignedConfig(),
}


DONORS = {"omp": {"k": 8}, "clp": {}, "clp_plus": {}}


@pytest.fixture(scope="module")
def donor_folder(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that uses the new tokenizer."""
    folder = tmp_path_factory.mktemp("donor")
    tiny_model(problem.target).save_pretrained(folder)
    problem.target.save_pretrained(folder)
    return str(folder)


def config_of(method: str, donor: str) -> Any:
    if method in DONORS:
        return METHODS[method].config(donor=donor, **DONORS[method])
    return CONFIGS.get(method, METHODS[method].config())


@pytest.fixture(scope="module", params=sorted(METHODS))
def transfer_plan(request: pytest.FixtureRequest, problem: Problem, donor_folder: str) -> plan.TransferPlan:
    config = config_of(request.param, donor_folder)
    return assemble(problem, METHODS[request.param].place(problem, config), request.param)


def old_rows(problem: Problem, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(problem.source_rows + 3, 24, generator=torch.Generator().manual_seed(0)).to(dtype)


# Every method


def test_mixtures_sum_to_one_and_fates_to_all(transfer_plan: plan.TransferPlan) -> None:
    sums = transfer_plan.dense().sum(dim=1)
    code = torch.from_numpy(transfer_plan.provenance)
    mixed = ~torch.isin(code, torch.tensor([Provenance.RANDOM, Provenance.SCRIPT, Provenance.MEAN, Provenance.FILLING]))
    if transfer_plan.method != "omp":  # whose coefficients rebuild a vector, and need not be shares
        assert torch.allclose(sums[mixed], torch.ones(int(mixed.sum())), atol=1e-5)
    assert (sums[~mixed] == 0).all()
    assert sum(transfer_plan.fates().values()) == len(transfer_plan)
    if transfer_plan.method not in ("omp", "clp"):
        assert (transfer_plan.weights > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_shared_token_keeps_its_row_bit_for_bit(transfer_plan, problem, dtype) -> None:
    old = old_rows(problem, dtype)
    new = apply.embeddings(transfer_plan, old)
    copied = np.flatnonzero(problem.shared >= 0)
    assert len(copied) > 50
    if transfer_plan.method == "resize":  # the one that goes by ids, whatever tokens they are
        assert torch.equal(new[: problem.source_rows], old[: problem.source_rows])
    else:
        assert torch.equal(new[copied], old[problem.shared[copied]])
    assert new.dtype == dtype
    assert new.isfinite().all()


def test_applying_a_plan_is_the_matrix_product(transfer_plan, problem) -> None:
    old = old_rows(problem, torch.float64)
    mixed = np.flatnonzero(np.diff(transfer_plan.indptr) > 0)
    expected = transfer_plan.dense().double() @ old[: problem.source_rows]
    assert (apply.embeddings(transfer_plan, old)[mixed] - expected[mixed]).abs().max() < 1e-6
    bias = torch.randn(problem.source_rows, generator=torch.Generator().manual_seed(1)).double()
    found = apply.bias(transfer_plan, bias)
    assert (found[mixed] - (transfer_plan.dense().double() @ bias)[mixed]).abs().max() < 1e-6
    rest = np.isin(transfer_plan.provenance, [Provenance.RANDOM, Provenance.MEAN])
    assert torch.allclose(found[rest], bias.mean().expand(int(rest.sum())))


def test_a_plan_is_saved_and_loaded(transfer_plan, tmp_path) -> None:
    transfer_plan.save(str(tmp_path))
    again = TransferPlan.load(str(tmp_path))
    for name in ("indptr", "indices", "weights", "provenance", "keys"):
        assert (getattr(again, name) == getattr(transfer_plan, name)).all()
    assert again.fates() == transfer_plan.fates()


def test_a_second_run_makes_the_same_plan(problem, transfer_plan, donor_folder: str) -> None:
    config = config_of(transfer_plan.method, donor_folder)
    again = assemble(problem, METHODS[transfer_plan.method].place(problem, config), transfer_plan.method)
    assert (again.indices == transfer_plan.indices).all()
    assert (again.weights == transfer_plan.weights).all()


# The baselines


def test_random_rows_have_the_old_moments_and_depend_on_the_token_only(problem) -> None:
    transfer_plan = assemble(problem, METHODS["random"].place(problem, METHODS["random"].config()), "random")
    old = old_rows(problem)
    new = apply.embeddings(transfer_plan, old)[transfer_plan.provenance == Provenance.RANDOM]
    source_embeddings = old[: problem.source_rows]
    assert (new.mean(dim=0) - source_embeddings.mean(dim=0)).abs().max() < 0.2
    assert (new.std(dim=0) / source_embeddings.std(dim=0) - 1).abs().max() < 0.2
    # The same token in another vocabulary, at another id, has the same row.
    token = problem.tokens[int(np.flatnonzero(transfer_plan.provenance == Provenance.RANDOM)[5])]
    shuffled = plan.TransferPlan(
        indptr=np.zeros(3, np.int64),
        indices=np.empty(0, np.int32),
        weights=np.empty(0, np.float32),
        provenance=np.full(2, Provenance.RANDOM, np.uint8),
        keys=np.array([9, keyed_random.key(token.key())], np.uint64),
        group=np.zeros(2, np.uint16),
        by=np.zeros(2, np.uint8),
        source_group=np.zeros(problem.source_rows, np.uint16),
        source_rows=problem.source_rows,
        seed=problem.seed,
        method="random",
    )
    assert torch.equal(apply.embeddings(shuffled, old)[1], new[5])


def test_mean_rows_are_the_mean_of_the_old_rows(problem) -> None:
    transfer_plan = assemble(problem, METHODS["mean"].place(problem, METHODS["mean"].config()), "mean")
    old = old_rows(problem)
    new = apply.embeddings(transfer_plan, old)[transfer_plan.provenance == Provenance.MEAN]
    assert torch.allclose(new, old[: problem.source_rows].mean(dim=0).expand_as(new))


# FVT: Gee et al. 2022, section 3


def test_fvt_is_the_mean_of_the_old_pieces(problem) -> None:
    rows = fvt.place(problem, fvt.FvtConfig())
    transfer_plan = assemble(problem, rows, "fvt")
    old = old_rows(problem)
    new = apply.embeddings(transfer_plan, old)
    checked = 0
    for number in rows.ids:
        token = problem.tokens[number]
        if not token.is_word_start:
            continue
        text = token.payload.decode()
        if family_of(problem.source) == "byte_level":
            text = " " + text  # where a word is in a sentence, and where its best pieces are
        pieces = [i for i in problem.source(text, add_special_tokens=False).input_ids if i != problem.source.unk_token_id]
        assert torch.allclose(new[number], old[pieces].mean(dim=0), atol=1e-6)
        checked += 1
    assert checked > 3


def test_fvt_does_not_treat_a_continuation_as_a_word(english) -> None:
    """Under its own tokenizer a continuation splits into itself, not into the word with the same letters."""
    source = FAMILIES["wordpiece"](english)
    texts = Texts(corpus=lambda: iter(()), anchors=[], positives=[])
    tokens = enumerate(Problem(source, source, texts, seed=0).tokens)
    continuing = [(number, token) for number, token in tokens if token.role is None and not token.is_word_start]
    assert len(continuing) > 100
    found = [fvt.split(source, token) == [number] for number, token in continuing]
    assert np.mean(found) > 0.9


# Aligned: counted by brute force


def test_aligned_is_the_normalised_dice_of_the_best_partners(problem) -> None:
    config = aligned.AlignedConfig(top=3, min_count=2)
    rows = aligned.place(problem, config)
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
        assert (
            (int(t) in placed)
            or count < 2
            or not any(
                n >= 2
                for n in collections.Counter(s for i, row in enumerate(target) if int(t) in row for s in source[i]).values()
            )
        )


# FOCUS and WECHSEL: section 3 of each, token by token, on the same fastText vectors


def test_focus_is_sparsemax_over_the_shared_tokens(problem, monkeypatch) -> None:
    calls = {}
    real = fasttext.train
    monkeypatch.setitem(
        VECTORS, "fasttext", replace(VECTORS["fasttext"], train=lambda *a: calls.setdefault("vectors", real(*a)))
    )
    rows = focus.place(problem, CONFIGS["focus"])
    vectors = calls["vectors"]
    names = [focus.fasttext_word(token, number) for number, token in enumerate(problem.tokens)]
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
        found = dict(
            zip(rows.indices[bounds[place] : bounds[place + 1]], rows.weights[bounds[place] : bounds[place + 1]], strict=True)
        )
        for t, weight in zip(basis, weights, strict=True):
            assert abs(found.get(problem.shared[t], 0.0) - weight) < 1e-5


def test_wechsel_is_softmax_over_the_nearest_old_tokens(problem, monkeypatch) -> None:
    calls = []
    real = fasttext.train
    monkeypatch.setitem(VECTORS, "fasttext", replace(VECTORS["fasttext"], train=lambda *a: calls.append(real(*a)) or calls[-1]))
    config = CONFIGS["wechsel"]
    rows = wechsel.place(problem, config)
    source, target = calls
    pairs = dictionary.mine(problem.texts.anchors, problem.texts.positives)
    rotation = word_space.rotation(pairs, source, target, "").double().numpy()
    from data_pipeline.tokenizers.canonical import canonical_tokens

    old = {}
    for number, token in enumerate(canonical_tokens(problem.source)):
        text = word_space.word_of(token, source)
        vector = source.vectors([text])[0].double().numpy() if text else np.zeros(16)
        if np.linalg.norm(vector) > 0:
            old[number] = vector @ rotation / np.linalg.norm(vector @ rotation)
    ids, matrix = list(old), np.stack(list(old.values()))
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    for place in range(0, len(rows.ids), 41):
        v = target.vectors([word_space.word_of(problem.tokens[rows.ids[place]], target)])[0].double().numpy()
        cosines = matrix @ (v / np.linalg.norm(v))
        best = np.sort(cosines)[::-1][: config.neighbours]
        weights = np.exp(best / config.temperature)
        part = slice(bounds[place], bounds[place + 1])
        assert np.abs(np.sort(rows.weights[part])[::-1] - weights / weights.sum()).max() < 1e-4
        chosen = np.sort(cosines[[ids.index(i) for i in rows.indices[part]]])[::-1]
        assert np.abs(chosen - best).max() < 1e-5


def test_wechsel_without_a_usable_dictionary_is_rejected(problem, tmp_path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text("xyzzy\tplugh\n")
    with pytest.raises(DataError, match="none of its 1 pairs"):
        wechsel.place(problem, wechsel.WechselConfig(space=SpaceConfig(fasttext=SMALL, dictionary=str(path))))
    path.write_text("no tab here\n")
    with pytest.raises(DataError, match="line 1"):
        wechsel.place(problem, wechsel.WechselConfig(space=SpaceConfig(fasttext=SMALL, dictionary=str(path))))


def test_a_mined_dictionary_recovers_a_cipher() -> None:
    """A language that replaces each word by another: every mined pair must be correct."""
    words = [f"{a}{b}" for a in "bcdfghklmnp" for b in "aeiou"]
    cipher = dict(zip(words, [word[::-1] + "q" for word in words], strict=True))
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.choice(words, 6)) for _ in range(800)]
    mined = dictionary.mine(lines, [" ".join(cipher[word] for word in line.split()) for line in lines])
    assert len(mined) > 50
    assert all(cipher[left] == right for left, right in mined)


# Applying


def test_embeddings_with_fewer_rows_than_the_tokenizer_are_rejected(problem, transfer_plan) -> None:
    with pytest.raises(ModelError, match="have 10 rows"):
        apply.embeddings(transfer_plan, torch.zeros(10, 4))


# Plans compared


def test_a_diff_names_the_rows_that_change(problem) -> None:
    one = assemble(problem, METHODS["fvt"].place(problem, fvt.FvtConfig()), "fvt")
    other = assemble(problem, aligned.place(problem, aligned.AlignedConfig()), "aligned")
    assert not len(diff(one, one).rows)
    found = diff(one, other)
    apart = (one.dense() - other.dense()).abs().sum(dim=1).numpy()
    assert np.abs(found.distance - apart[found.rows]).max() < 1e-5
    rest = np.setdiff1d(np.arange(len(one)), found.rows)
    assert (apart[rest] == 0).all()
    assert (one.provenance[rest] == other.provenance[rest]).all()
    assert sum(found.moves.values()) == len(found.rows)
    with pytest.raises(ArtifactError, match="different target"):
        diff(one, dataclasses.replace(other, target_tokenizer="another"))


def test_a_torn_plan_is_rejected(problem, tmp_path) -> None:
    transfer_plan = assemble(problem, METHODS["fvt"].place(problem, fvt.FvtConfig()), "fvt")
    other = assemble(problem, METHODS["random"].place(problem, METHODS["random"].config()), "random")
    transfer_plan.save(str(tmp_path))
    other.save(str(tmp_path / "other"))
    (tmp_path / "plan.json").write_bytes((tmp_path / "other" / "plan.json").read_bytes())
    with pytest.raises(ArtifactError, match="do not belong together"):
        TransferPlan.load(str(tmp_path))


def test_permuting_the_target_vocabulary_permutes_the_rows(english, greek, pairs, made_method, tmp_path) -> None:
    """The row of a token does not depend on its id, bit for bit."""
    source = FAMILIES["wordpiece"](english)
    target = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1500))
    moved, order = permute_ids(target)
    texts = Texts(corpus=lambda: iter(greek), anchors=english, positives=[row["positive"] for row in pairs])
    tiny_model(target).save_pretrained(tmp_path)
    target.save_pretrained(tmp_path)
    entry, config = METHODS[made_method], config_of(made_method, str(tmp_path))
    old = torch.randn(len(source), 24, generator=torch.Generator().manual_seed(0))
    rows = []
    for tokenizer in (target, moved):
        problem = Problem(source, tokenizer, texts, seed=3)
        rows.append(apply.embeddings(assemble(problem, entry.place(problem, config), made_method), old))
    assert torch.equal(rows[1][order], rows[0])


@pytest.fixture(params=sorted(set(METHODS) - {"resize"}))  # whose rows are those of the ids, not of the tokens
def made_method(request: pytest.FixtureRequest) -> str:
    return request.param


def permute_ids(tokenizer):  # type: ignore[no-untyped-def]
    """The same WordPiece tokenizer with its ordinary tokens at other ids, and the new id of each old id."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    special = len(spec["added_tokens"])
    order = np.concatenate([np.arange(special), special + np.random.default_rng(0).permutation(len(tokenizer) - special)])
    spec["model"]["vocab"] = {piece: int(order[number]) for piece, number in spec["model"]["vocab"].items()}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{n: getattr(tokenizer, n) for n in names}), order
