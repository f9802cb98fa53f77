"""OFA, TokenAdapt and script moments against brute-force implementations of their papers; and the word vectors."""

import dataclasses
import unicodedata

import fsspec
import numpy as np
import pytest
import scipy.special
import torch

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.tokenizers.canonical import Token, canonical_tokens, script
from trainer.executor import LocalExecutor
from trainer.transfer import apply
from trainer.transfer.methods import focus, fvt, ofa, script_moments, tokenadapt, wechsel
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import assemble
from trainer.word_vectors import files, ppmi, word_space
from trainer.word_vectors.fasttext import FastTextConfig
from trainer.word_vectors.ppmi import PpmiConfig
from trainer.word_vectors.vectors import TableVectors
from trainer.word_vectors.word_space import SpaceConfig

SMALL = SpaceConfig(fasttext=FastTextConfig(dim=16, epochs=2, min_count=2, buckets=2000))


def entries(rows, place: int) -> dict[int, float]:  # type: ignore[no-untyped-def]
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    part = slice(bounds[place], bounds[place + 1])
    return dict(zip(rows.indices[part].tolist(), rows.weights[part].tolist(), strict=True))


# OFA: Liu et al. 2024, section 3


def test_ofa_is_softmax_over_tokens_whose_words_are_near(problem, monkeypatch) -> None:
    calls = {}
    real = word_space.align_vectors
    monkeypatch.setattr(word_space, "align_vectors", lambda *a: calls.setdefault("space", real(*a)))
    rows = ofa.place(problem, ofa.OfaConfig(space=SMALL))
    source, target = calls["space"]
    old, new = by_hand(problem.source, source), by_hand(problem.target, target)
    ids, matrix = list(old), np.stack([v / np.linalg.norm(v) for v in old.values()])
    assert set(rows.ids.tolist()) == set(new) & set(problem.new.tolist())
    for place in range(0, len(rows.ids), 53):
        v = new[int(rows.ids[place])]
        cosines = matrix @ (v / np.linalg.norm(v))
        best = np.argsort(-cosines, kind="stable")[:10]
        expected = scipy.special.softmax(cosines[best] / 0.1)
        found = entries(rows, place)
        assert np.abs(np.sort(list(found.values())) - np.sort(expected)).max() < 1e-4
        assert np.abs(np.sort([cosines[ids.index(i)] for i in found]) - np.sort(cosines[best])).max() < 1e-5


def by_hand(tokenizer, vectors) -> dict[int, np.ndarray]:  # type: ignore[no-untyped-def]
    """The mean vector of each id over the four spellings of all words, one tokenizer call per spelling."""
    sums: dict[int, np.ndarray] = {}
    times: dict[int, int] = {}
    for word in vectors.words:
        v = vectors.vectors([word])[0].double().numpy()
        for spelling in (word, " " + word, word.title(), " " + word.title()):
            for piece in set(tokenizer(spelling, add_special_tokens=False).input_ids):
                sums[piece] = sums.get(piece, 0) + v
                times[piece] = times.get(piece, 0) + 1
    return {piece: sums[piece] / times[piece] for piece in sorted(sums)}


# TokenAdapt: Sharthak et al. 2025, section 3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_tokenadapt_is_the_mixture_of_pieces_and_neighbours(problem, monkeypatch, share: float) -> None:
    calls = {}
    real = word_space.align_vectors
    monkeypatch.setattr(word_space, "align_vectors", lambda *a: calls.setdefault("space", real(*a)))
    rows = tokenadapt.place(problem, tokenadapt.TokenadaptConfig(space=SMALL, global_weight=share))
    source, target = calls["space"]
    old_tokens = canonical_tokens(problem.source)
    phi_old = {}
    for number, token in enumerate(old_tokens):
        v = source.vectors([word_space.word_of(token, source) or "\0"])[0].double().numpy()
        if word_space.word_of(token, source) and np.linalg.norm(v):
            phi_old[number] = v / np.linalg.norm(v)
    for place in range(0, len(rows.ids), 61):
        token = problem.tokens[rows.ids[place]]
        expected: dict[int, float] = {}
        v = target.vectors([word_space.word_of(token, target) or "\0"])[0].double().numpy()
        v = v / np.linalg.norm(v) if word_space.word_of(token, target) and np.linalg.norm(v) else None
        pieces = fvt.split(problem.source, token) if share < 1 else []
        parts = []
        if pieces:
            u = scipy.special.softmax([v @ phi_old[p] if v is not None and p in phi_old else 0.0 for p in pieces])
            length = np.array([len(old_tokens[p].payload) for p in pieces]) / len(token.payload)
            parts.append((1 - share, pieces, scipy.special.softmax((u + length) / 2 / 0.3)))
        if v is not None and share > 0:
            nearest = sorted(phi_old, key=lambda s: (-(v @ phi_old[s]), s))[:3]
            nearest = [s for s in nearest if v @ phi_old[s] >= 0]
            parts.append((share, nearest, scipy.special.softmax([v @ phi_old[s] / 0.3 for s in nearest])))
        total = sum(weight for weight, *_ in parts)
        for weight, members, weights in parts:
            for member, w in zip(members, weights, strict=True):
                expected[member] = expected.get(member, 0.0) + weight / total * w
        found = entries(rows, place)
        assert set(found) == set(expected)
        assert max(abs(found[i] - expected[i]) for i in found) < 1e-4
    assert set(np.unique(rows.provenance)) <= {Provenance.HYBRID, Provenance.COMPOSITION, Provenance.NEIGHBOURS}


def test_tokenadapt_takes_an_embedder(problem, source_folder: str) -> None:
    rows = tokenadapt.place(problem, tokenadapt.TokenadaptConfig(embedder=source_folder))
    assert len(rows.ids) > 100
    with pytest.raises(ConfigError, match="global_weight"):
        tokenadapt.TokenadaptConfig(global_weight=1.5)


# Script moments: Downey et al. 2023


def test_script_moments_draws_from_the_rows_of_the_same_script(problem) -> None:
    rows = script_moments.place(problem, script_moments.ScriptMomentsConfig(min_tokens=3))
    transfer_plan = assemble(problem, rows, "script_moments")
    old_tokens = canonical_tokens(problem.source)
    latin = np.array([t is not None and (t.text() or "").isalpha() and t.payload.isascii() for t in old_tokens])
    old = torch.randn(problem.source_rows, 4000, generator=torch.Generator().manual_seed(0))
    old[torch.from_numpy(latin)] = old[torch.from_numpy(latin)] * 0.25 + 3.0
    new = apply.embeddings(transfer_plan, old)
    drawn = [n for n in rows.ids if (problem.tokens[n].text() or "").isalpha() and problem.tokens[n].payload.isascii()]
    assert drawn
    known = old[torch.from_numpy(np.array([script(t) == "LATIN" for t in old_tokens]))]
    for number in drawn[:20]:
        z = (new[number] - known.mean(dim=0)) / known.std(dim=0, correction=0)
        assert abs(float(z.mean())) < 0.1
        assert abs(float(z.std()) - 1) < 0.1
    if not any("GREEK" in script(t) for t in old_tokens):
        greek = [n for n in problem.new if script(problem.tokens[n]) == "GREEK"]
        assert (transfer_plan.provenance[greek] == Provenance.RANDOM).all()


@pytest.mark.parametrize(
    ("text", "expected"), [("αβγ", "GREEK"), ("der", "LATIN"), ("漢字", "CJK"), ("12", "COMMON"), ("ы1", "CYRILLIC")]
)
def test_the_script_is_that_of_the_letters(text: str, expected: str) -> None:
    assert script(Token(None, True, text.encode())) == expected
    assert script(Token(None, False, text.encode()[:-1] + b"\xff")) == ""
    assert script(Token("mask", False, b"")) == ""
    assert unicodedata.name(text[0]).split()[0] in (expected, "DIGIT")


# Vectors


def test_ppmi_equals_the_formula_whatever_the_parts(english, monkeypatch) -> None:
    lines = [" ".join(text.lower().split()) for text in english]
    config = PpmiConfig(dim=8, min_count=8, window=2)
    whole = ppmi.train(lines, config, "text")
    monkeypatch.setattr(ppmi, "PART_LINES", 37)
    parts = ppmi.train(lines, config, "text", LocalExecutor())
    assert parts.words == whole.words
    assert torch.equal(parts.vectors(parts.words), whole.vectors(whole.words))
    # By brute force: a dense matrix, loops over places, NumPy's own SVD; the Gram matrices compare, signs being open.
    number = {word: i for i, word in enumerate(whole.words)}
    counts = np.zeros((len(number), len(number)))
    for line in lines:
        ids = [number[word] for word in line.split() if word in number]
        for i, a in enumerate(ids):
            for j, b in enumerate(ids):
                counts[a, b] += 0 < abs(i - j) <= 2
    smooth = counts.sum(0) ** 0.75
    with np.errstate(divide="ignore"):
        pmi = np.maximum(np.log(counts * smooth.sum() / (counts.sum(1)[:, None] * smooth[None])), 0)
    u, s, _ = np.linalg.svd(pmi)
    rows = whole.vectors(whole.words).double().numpy()
    assert np.abs(rows @ rows.T - (u[:, :8] * s[:8]) @ u[:, :8].T).max() < 1e-4


def test_ppmi_on_too_little_text_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"lower ppmi\.min_count"):
        ppmi.train(["one two three"] * 9, PpmiConfig(dim=10), "text")


def test_vectors_are_read_from_a_text_file(tmp_path) -> None:
    path = tmp_path / "a.vec"
    path.write_text("3 4\nthe 1 0 0 0\nof 0 1 0 0.5\nfile 0 0 1 0\n")
    found = files.read(str(path))
    assert found.words == ["the", "of", "file"]
    assert found.vectors(["of", "nothing"]).tolist() == [[0, 1, 0, 0.5], [0, 0, 0, 0]]
    path.write_text("the 1 0 0 0\nof 0 1 0\n")
    with pytest.raises(DataError, match="line 2 has 3 numbers, the lines before 4"):
        files.read(str(path))
    with pytest.raises(DataError, match="no such file"):
        files.read(str(tmp_path / "b.vec"))
    (tmp_path / "c.bin").write_bytes(b"not fastText")
    with pytest.raises(DataError, match="fastText cannot read it"):
        files.read(str(tmp_path / "c.bin"))


def test_only_the_file_itself_is_fetched_from_a_store() -> None:
    """cc.xx vectors are in a folder with hundreds of other files of gigabytes each."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/vectors/a.vec", b"the 1 0\nof 0 1\n")
    fs.pipe_file("/vectors/b.vec", b"x" * 1000)
    fetched: list[str] = []
    real = type(fs).get_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fs), "get_file", lambda self, path, *a, **k: (fetched.append(path), real(self, path, *a, **k))[1])
        assert files.read("memory://vectors/a.vec").words == ["the", "of"]
    assert fetched == ["/vectors/a.vec"]


def test_a_word_is_looked_up_as_written_and_then_in_lower_case(problem) -> None:
    """cc.xx vectors are case-sensitive: "May" is not "may"."""
    token = next(token for token in problem.tokens if token is not None and token.role is None and token.text())
    for written, known, word in (("May", {"May", "may"}, "May"), ("May", {"may"}, "may"), ("MAY", set(), "may")):
        assert word_space.word_of(dataclasses.replace(token, payload=written.encode()), known) == word
    assert word_space.word_of(None, {"may"}) == ""


def test_given_vectors_of_different_widths_are_rejected(problem, tmp_path) -> None:
    for name, width in (("s.vec", 4), ("t.vec", 5)):
        words = ("file", "αρχείο") if name[0] == "t" else ("file", "document")
        (tmp_path / name).write_text("".join(f"{word} {' '.join(['0.5'] * width)}\n" for word in words))
    (tmp_path / "d.tsv").write_text("file\tfile\n")
    space = SpaceConfig(
        source_vectors=str(tmp_path / "s.vec"), target_vectors=str(tmp_path / "t.vec"), dictionary=str(tmp_path / "d.tsv")
    )
    with pytest.raises(DataError, match=r"cannot align .*4.* with .*5.*one width"):
        wechsel.place(problem, wechsel.WechselConfig(space=space))


@pytest.mark.parametrize("kind", ["ppmi", "given"])
def test_every_kind_of_vectors_works_with_every_method(problem, english, greek, tmp_path, kind: str) -> None:
    small = PpmiConfig(dim=12, min_count=2)
    space, of_focus = SpaceConfig(kind="ppmi", ppmi=small), focus.FocusConfig(kind="ppmi", ppmi=small)
    if kind == "given":
        for name, texts in (("s", english), ("t", greek)):
            trained = ppmi.train([" ".join(word_space.dictionary.words(text)) for text in texts], small, name)
            rows = zip(trained.words, trained.vectors(trained.words).tolist(), strict=True)
            (tmp_path / f"{name}.vec").write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in rows))
        space = SpaceConfig(source_vectors=str(tmp_path / "s.vec"), target_vectors=str(tmp_path / "t.vec"))
        of_focus = focus.FocusConfig(vectors=str(tmp_path / "t.vec"))
    for rows in (
        wechsel.place(problem, wechsel.WechselConfig(space=space)),
        ofa.place(problem, ofa.OfaConfig(space=space)),
        tokenadapt.place(problem, tokenadapt.TokenadaptConfig(space=space)),
        focus.place(problem, of_focus),
    ):
        assert len(rows.ids) > 20
        sums = np.add.reduceat(rows.weights, np.concatenate([[0], np.cumsum(rows.counts)[:-1]]))
        assert np.abs(sums - 1).max() < 1e-5


def test_an_unknown_word_has_no_vector() -> None:
    table = TableVectors(["a"], np.ones((1, 3), np.float32), np.ones(1))
    assert "b" not in table
    assert table.vectors(["b"]).abs().sum() == 0
