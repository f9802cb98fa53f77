"""Losses against their formulas, and the gathered gradient against one process with the whole batch."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from data_pipeline.artifacts import artifact
from data_pipeline.errors import ConfigError
from data_pipeline.pairs.batch import PairBatch
from tests.conftest import FAMILIES, tiny_model
from trainer.models.dual_encoder import DualEncoder
from trainer.models.packed_lm import bits_per_byte
from trainer.objectives import info_nce
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.mixed_negatives import mixed_negatives
from trainer.objectives.objective import NO_PARTNER, Gathered, PairVectors

PAIRS, WIDTH = 6, 8
ALL: tuple[Any, ...] = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
VARIANTS: dict[str, dict[str, Any]] = {
    "one way": {"directions": ("query_to_doc",), "partition_mode": "joint"},
    "both ways": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    "both ways, joint": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "joint"},
    "four ways": {"directions": ALL, "partition_mode": "joint"},
    "harder negatives of other pairs": {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0},
    "harder hard negatives": {"hardness_mode": "hard_negatives", "hardness_strength": 5.0},
    "all harder": {"directions": ALL, "hardness_mode": "all_negatives", "hardness_strength": 5.0},
}
HARDNESS_OF: dict[str, Any] = {"in_batch_negatives": "in_batch", "hard_negatives": "hard", "all_negatives": "all"}


def vectors(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64), dim=1)


def gathered_pairs(
    queries: torch.Tensor, documents: torch.Tensor, query_keys: list[int], document_keys: list[int]
) -> PairVectors:
    """Pairs of one rank; as many hard negatives for each, in rounds of all pairs, as sentence-transformers orders them."""
    pairs, total = len(queries), len(documents)
    owners = torch.arange(total) % pairs
    keys, texts = torch.tensor(query_keys), torch.tensor(document_keys)
    partners = torch.where(torch.arange(total) < pairs, keys[owners], NO_PARTNER)
    return PairVectors(
        Gathered(queries, queries, keys, texts[:pairs], torch.arange(pairs), torch.ones(pairs), 0),
        Gathered(documents, documents, texts, partners, owners, torch.ones(total), 0),
    )


def losses(objective: InfoNce, reps: PairVectors) -> torch.Tensor:
    return objective(reps, SimpleNamespace(weights=torch.ones(len(reps.anchors.own))))  # type: ignore[arg-type]


class Stub(torch.nn.Module):
    """A model whose vectors are given."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["v"]}


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_sentence_transformers(variant: str, negatives: int) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    settings = VARIANTS[variant]
    columns = [vectors(PAIRS, seed).requires_grad_() for seed in range(2 + negatives)]
    theirs = MultipleNegativesRankingLoss(Stub(), scale=20.0, **settings)([{"v": column} for column in columns], None)  # type: ignore[arg-type]
    their_gradients = torch.autograd.grad(theirs, columns)
    hardness: dict[str, Any] = {}
    if "hardness_mode" in settings:
        hardness = {"hardness": settings["hardness_strength"], "hardness_of": HARDNESS_OF[settings["hardness_mode"]]}
    objective = InfoNce(
        temperature=1 / 20,
        directions=settings.get("directions", ("query_to_doc",)),
        partition=settings.get("partition_mode", "joint"),
        **hardness,
    )
    total = PAIRS * (1 + negatives)
    reps = gathered_pairs(columns[0], torch.cat(columns[1:]), list(range(PAIRS)), list(range(100, 100 + total)))
    ours = losses(objective, reps).mean()
    assert abs(ours.detach() - theirs.detach()) < 1e-9
    # Theirs differentiates the cosine of vectors that are unit vectors already; the part along the vector is not ours.
    for own, other, column in zip(torch.autograd.grad(ours, columns), their_gradients, columns, strict=True):
        across = own - (own * column).sum(dim=1, keepdim=True) * column
        assert (across - other).abs().max() < 1e-9


def test_false_negatives_are_left_out_in_every_direction() -> None:
    """By brute force: a text is no negative if it or its partner has the text of the row or of the row's partner."""
    query_keys = [1, 2, 3, 1, 5, 6]  # pairs 0 and 3 have the same anchor
    document_keys = [101, 102, 103, 104, 102, 106, 107, 101, 109, 110, 111, 6]  # 4 repeats 1; hard negatives repeat 101 and 6
    queries, documents = vectors(PAIRS, 0), vectors(2 * PAIRS, 1)
    ours = losses(InfoNce(directions=ALL, partition="joint"), gathered_pairs(queries, documents, query_keys, document_keys))
    for i in range(PAIRS):
        texts = {query_keys[i], document_keys[i]}
        terms = [math.exp(float(queries[i] @ documents[i]) / 0.05)]
        for j in range(2 * PAIRS):
            partner = {query_keys[j]} if j < PAIRS else set()
            if texts & ({document_keys[j]} | partner):
                continue
            terms.append(math.exp(float(queries[i] @ documents[j]) / 0.05))
            if j % PAIRS != i:
                terms.append(math.exp(float(documents[i] @ documents[j]) / 0.05))
        terms.append(terms[0])  # the anchor, seen from its document
        for j in range(PAIRS):
            if not texts & {query_keys[j], document_keys[j]}:
                terms += [math.exp(float(one @ queries[j]) / 0.05) for one in (queries[i], documents[i])]
        assert float(ours[i]) == pytest.approx(-math.log(terms[0] / sum(terms)), abs=1e-9)


def shared(reps: PairVectors, in_batch: list[bool]) -> PairVectors:
    """The same pairs, some of which share no candidates."""
    flags = torch.tensor(in_batch)
    return PairVectors(*(side._replace(in_batch=flags[side.owners]) for side in reps))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "harder" not in name])
def test_a_pair_that_shares_no_candidates_sees_its_own_documents_only(variant: str) -> None:
    """By the formula: such a pair is a softmax over its documents, and for the others the batch is the rest alone."""
    settings = {"directions": VARIANTS[variant]["directions"], "partition": VARIANTS[variant]["partition_mode"]}
    queries, documents = vectors(PAIRS, 0).requires_grad_(), vectors(2 * PAIRS, 1).requires_grad_()
    in_batch = [True, False, True, True, False, True]
    keys = (list(range(PAIRS)), list(range(100, 100 + 2 * PAIRS)))
    ours = losses(InfoNce(**settings), shared(gathered_pairs(queries, documents, *keys), in_batch))
    rest = [pair for pair in range(PAIRS) if in_batch[pair]]
    both = rest + [PAIRS + pair for pair in rest]
    alone = losses(InfoNce(**settings), gathered_pairs(queries[rest], documents[both], rest, [100 + place for place in both]))
    assert torch.allclose(ours[rest], alone, atol=1e-12)
    for pair in (1, 4):
        cosines = queries[pair] @ documents[[pair, PAIRS + pair]].T / 0.05
        assert float(ours[pair].detach()) == pytest.approx(float(-cosines.log_softmax(0)[0].detach()), abs=1e-12)
    gradients = torch.autograd.grad(ours[1], [queries, documents], retain_graph=True)
    assert gradients[0].abs().sum(dim=1).nonzero().flatten().tolist() == [1]
    assert gradients[1].abs().sum(dim=1).nonzero().flatten().tolist() == [1, PAIRS + 1]


def test_padding_is_no_negative() -> None:
    reps = gathered_pairs(vectors(4, 0), vectors(8, 1), list(range(4)), list(range(100, 108)))
    weights = torch.tensor([1.0, 1, 1, 1, 1, 0, 1, 0])
    padded = losses(InfoNce(), reps._replace(documents=reps.documents._replace(weights=weights)))
    visible = torch.tensor([0, 1, 2, 3, 4, 6])
    shorter = Gathered(reps.documents.own[visible], *(column[visible] for column in reps.documents[1:6]), 0)
    assert torch.allclose(padded, losses(InfoNce(), reps._replace(documents=shorter)), atol=1e-12)


def test_blocks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = InfoNce(
        directions=ALL, partition="joint", focal=0.5, hardness=2.0, progressive=True, margin=0.3, mixed_list=True
    )
    gradients = []
    for logits in (1 << 24, 25):
        monkeypatch.setattr(info_nce, "BLOCK_LOGITS", logits)
        leaves = [vectors(PAIRS, 0).requires_grad_(), vectors(2 * PAIRS, 1).requires_grad_()]
        loss = losses(objective, gathered_pairs(*leaves, list(range(PAIRS)), list(range(100, 100 + 2 * PAIRS))))  # type: ignore[arg-type]
        gradients.append(torch.autograd.grad(loss.sum(), leaves))
    for whole, in_blocks in zip(*gradients, strict=True):
        assert torch.allclose(whole, in_blocks, atol=1e-12)


def test_the_focal_weight_is_what_is_left_of_the_probability() -> None:
    reps = gathered_pairs(vectors(PAIRS, 0), vectors(PAIRS, 1), list(range(PAIRS)), list(range(100, 100 + PAIRS)))
    plain, focal = (losses(InfoNce(directions=("query_to_doc",), focal=gamma), reps) for gamma in (0.0, 0.5))
    assert torch.allclose(focal, (1 - torch.exp(-plain)) ** 0.5 * plain, atol=1e-12)


@pytest.mark.parametrize(("negatives", "directions"), [(0, ("query_to_doc", "query_to_query", "doc_to_doc")), (1, ALL[:2])])
def test_a_margin_of_nothing_is_gistembed_with_itself_as_the_guide(negatives: int, directions: tuple[str, ...]) -> None:
    """With a hard negative without doc_to_doc: theirs compares positives with positives only."""
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss

    class Guided(Stub):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})))
        max_seq_length = 8

    columns = [vectors(PAIRS, seed) for seed in range(2 + negatives)]
    theirs_of = GISTEmbedLoss(Guided(), guide=Guided(), temperature=0.05, contrast_positives="doc_to_doc" in directions)  # type: ignore[arg-type]
    theirs = theirs_of([{"v": column} for column in columns], None)  # type: ignore[arg-type]
    reps = gathered_pairs(
        columns[0], torch.cat(columns[1:]), list(range(PAIRS)), list(range(100, 100 + PAIRS * (1 + negatives)))
    )
    ours = losses(InfoNce(directions=directions, partition="joint", margin=0.0), reps).mean()
    assert abs(ours - theirs) < 1e-9


def gradient(objective: InfoNce, leaves: list[torch.Tensor], reps: PairVectors) -> list[torch.Tensor]:
    return list(torch.autograd.grad(losses(objective, reps).sum(), leaves))


def test_progressive_weights_follow_their_formula_and_have_no_gradient() -> None:
    leaves = [vectors(PAIRS, 0).requires_grad_(), vectors(2 * PAIRS, 1).requires_grad_()]
    reps = gathered_pairs(leaves[0], leaves[1], list(range(PAIRS)), list(range(100, 100 + 2 * PAIRS)))
    objective = InfoNce(directions=("query_to_doc",), progressive=True)
    cosines = leaves[0] @ leaves[1].T
    values = cosines.tolist()
    level = sum(values[i][i] for i in range(PAIRS)) / PAIRS
    expected, weighted = [], 0
    for i in range(PAIRS):
        logits = []
        for j in range(2 * PAIRS):
            is_hard = j != i and values[i][j] > values[i][i]
            weighted += is_hard
            logits.append(cosines[i, j] * (level + values[i][j] if is_hard else 1.0) / 0.05)
        expected.append(torch.stack(logits).logsumexp(0) - logits[i])
    assert weighted > PAIRS
    assert torch.allclose(losses(objective, reps), torch.stack(expected), atol=1e-12)
    theirs = torch.autograd.grad(torch.stack(expected).sum(), leaves)
    for own, other in zip(gradient(objective, leaves, reps), theirs, strict=True):
        assert torch.allclose(own, other, atol=1e-12)


@pytest.mark.parametrize("changed", [{"progressive": True}, {"margin": 0.0}])
def test_rounding_does_not_decide_about_candidates_as_close_as_the_positive(changed: dict[str, Any]) -> None:
    """Two texts that the cut to max_length makes equal have vectors that differ in rounding, by the batch they stood in."""
    queries, positives = vectors(PAIRS, 0), vectors(PAIRS, 1)
    keys = list(range(PAIRS)), list(range(100, 100 + 2 * PAIRS))
    nudge = 1e-7 * queries
    below, above = (
        losses(InfoNce(**changed), gathered_pairs(queries, torch.cat([positives, positives + sign * nudge]), *keys))
        for sign in (-1, 1)
    )
    assert torch.allclose(below, above, atol=1e-5, rtol=0)


def ragged_pairs(queries: torch.Tensor, documents: torch.Tensor, counts: list[int]) -> PairVectors:
    """Pairs of one rank, pair i with counts[i] hard negatives."""
    pairs = len(queries)
    owners = torch.cat([torch.arange(pairs), torch.arange(pairs).repeat_interleave(torch.tensor(counts))])
    reps = gathered_pairs(queries, documents, list(range(pairs)), list(range(100, 100 + len(documents))))
    return reps._replace(documents=reps.documents._replace(owners=owners))


def test_mixtures_of_two_lie_between_negatives_of_the_same_anchor() -> None:
    """Only anchors with two hard negatives have any; without gradient, a mixture is a point of the arc between two of them."""
    counts = [0, 1, 2, 4, 0, 3]
    documents = vectors(PAIRS + sum(counts), 1)
    mixed, is_there = mixed_negatives(ragged_pairs(vectors(PAIRS, 0), documents, counts), 5, False, 0.05)
    assert is_there.all(dim=1).tolist() == [count >= 2 for count in counts]
    assert not is_there[[0, 1, 4]].any()
    start = PAIRS
    for row, count in enumerate(counts):
        own = documents[start : start + count]
        start += count
        for vector in mixed[row] if count >= 2 else ():
            assert float(vector.norm()) == pytest.approx(1)
            fits = [torch.linalg.lstsq(own[[a, b]].T, vector[:, None]) for a in range(count) for b in range(a)]
            shares = [fit.solution[:, 0] for fit in fits if float(fit.residuals.sum()) < 1e-20]
            assert any(float(share.min()) > 0 for share in shares)


def test_the_mixture_of_all_follows_its_formula() -> None:
    counts = [0, 2, 3, 1, 4, 2]
    queries, documents = vectors(PAIRS, 0), vectors(PAIRS + sum(counts), 1)
    plain, mixed = (
        losses(InfoNce(directions=("query_to_doc",), mixed_list=flag), ragged_pairs(queries, documents, counts))
        for flag in (False, True)
    )
    start = PAIRS
    for row, count in enumerate(counts):
        own = documents[start : start + count]
        start += count
        added = 0.0
        if count >= 2:
            total = torch.softmax(own @ queries[row] / 0.05, dim=0) @ own
            added = math.exp(float(queries[row] @ total / total.norm()) / 0.05)
        positive = math.exp(float(queries[row] @ documents[row]) / 0.05)
        before = positive * math.exp(float(plain[row]))  # the sum of all candidates
        assert float(mixed[row]) == pytest.approx(math.log((before + added) / positive), abs=1e-9)


def test_pairs_that_share_no_candidates_have_mixed_negatives_in_all_directions() -> None:
    """Their softmax is that of query_to_doc, whatever the other pairs are asked."""
    queries, documents, counts = vectors(PAIRS, 0), vectors(PAIRS + 12, 1), [2, 2, 2, 2, 2, 2]
    reps = shared(ragged_pairs(queries, documents, counts), [False] * PAIRS)
    one_way, both_ways = (losses(InfoNce(directions=ways, mixed_list=True), reps) for ways in (ALL[:1], (ALL[0], ALL[2])))
    assert torch.allclose(one_way, both_ways, atol=1e-12)
    assert (both_ways > losses(InfoNce(), reps)).all()


def test_artefacts_from_before_the_newer_settings_stay_valid() -> None:
    old = {"temperature", "directions", "partition", "hardness", "hardness_of", "focal"}
    assert set(artifact.identity(InfoNce())) == old
    changed: dict[str, Any] = {"progressive": True, "margin": 0.0, "mixed_pairs": 1, "mixed_list": True}
    for name, value in changed.items():
        assert set(artifact.identity(InfoNce(**{name: value}))) == old | {name}


def test_negatives_that_are_positives_are_not_mixed() -> None:
    counts, documents = [2, 3, 0, 0, 0, 0], vectors(PAIRS + 5, 1)
    reps = ragged_pairs(vectors(PAIRS, 0), documents, counts)
    keys = reps.documents.keys.clone()
    keys[PAIRS], keys[PAIRS + 2] = 100, 1  # a negative with the text of its positive, and one with that of its anchor
    _, is_there = mixed_negatives(reps._replace(documents=reps.documents._replace(keys=keys)), 1, False, 0.05)
    assert is_there[:, 0].tolist() == [False, True, False, False, False, False]


def test_the_gradient_of_a_mixture_reaches_the_negatives() -> None:
    counts = [2] * PAIRS
    leaves = [vectors(PAIRS, 0).requires_grad_(), vectors(3 * PAIRS, 1).requires_grad_()]
    objective = InfoNce(directions=("query_to_doc",), mixed_pairs=2, mixed_list=True)

    def value(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        own = torch.nn.functional.normalize(documents, dim=1)
        reps = ragged_pairs(torch.nn.functional.normalize(queries, dim=1), own, counts)
        return mixed_negatives(reps, 2, False, 0.05)[0].sum() + losses(replace(objective, mixed_list=False), reps).sum()

    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"directions": ("doc_to_query",)}, "directions need query_to_doc"),
        ({"directions": ("query_to_doc", "doc_to_quary")}, "'doc_to_quary' is no direction. Choose from query_to_doc"),
        ({"directions": ALL}, r"(doc_to_doc|query_to_query) has no positive of its own. Set partition=joint"),
        ({"hardness": -1.0}, "at least 0"),
        ({"margin": -0.1}, "margin must be at least 0"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InfoNce(**settings)


def test_bits_per_byte_of_a_uniform_guess() -> None:
    """A uniform distribution over 256 tokens of one byte each needs 8 bits per byte."""
    assert abs(bits_per_byte(100 * math.log(256), 100, 5000, 5000) - 8.0) < 1e-9


def pair_rows(generator: np.random.Generator, n: int) -> pa.Table:
    def ids() -> list[int]:
        return generator.integers(5, 300, generator.integers(3, 12)).tolist()

    negatives = [[ids() for _ in range(generator.integers(0, 3))] for _ in range(n)]
    kind = pa.list_(pa.int32())
    return pa.table(
        {
            "anchor": pa.array([ids() for _ in range(n)], kind),
            "positive": pa.array([ids() for _ in range(n)], kind),
            "negatives": pa.array(negatives, pa.list_(kind)),
            "anchor_key": pa.array(range(n), pa.int64()),
            "positive_key": pa.array(range(100, 100 + n), pa.int64()),
            "negative_keys": pa.array(
                [[1000 + i * 10 + j for j in range(len(row))] for i, row in enumerate(negatives)], pa.list_(pa.int64())
            ),
            "in_batch": pa.array([i != 1 for i in range(n)]),
            "stream": pa.array([0] * n),
            "weight": pa.array([1.0] * (n - 1) + [0.0], pa.float32()),
        }
    )


def _encoder(tokenizer) -> DualEncoder:  # type: ignore[no-untyped-def]
    return DualEncoder(tiny_model(tokenizer).bert, "mean")


def _rank(rank: int, world: int, port: int, tokenizer, table: pa.Table, folder: str) -> None:  # type: ignore[no-untyped-def]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    module = _encoder(tokenizer)
    share = len(table) // world
    batch = PairBatch(table.slice(rank * share, share), pad=0)
    loss = module(batch).sum()
    total = batch.counts(1).sum().float()
    dist.all_reduce(total)
    (loss * world / total).backward()
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            gradients[name] = parameter.grad / world
    summed = loss.detach().clone()
    dist.all_reduce(summed)
    if rank == 0:
        torch.save((float(summed / total), gradients), f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_the_gathered_gradient_equals_that_of_one_process(world: int, english, tmp_path) -> None:
    """Ragged hard negatives, a pair that shares no candidates and a row of weight 0 included (specs/embedder.md 2.2)."""
    import socket

    tokenizer = FAMILIES["wordpiece"](english)
    table = pair_rows(np.random.default_rng(world), 6 * world // world * world)
    module = _encoder(tokenizer)
    whole = PairBatch(table, pad=0)
    loss = module(whole).sum() / whole.counts(1).sum()
    loss.backward()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (world, port, tokenizer, table, str(tmp_path)), nprocs=world)
    gathered_loss, gathered = torch.load(tmp_path / "result.pt")
    assert abs(gathered_loss - float(loss.detach())) < 1e-5
    expected = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert expected.keys() == gathered.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, gradient in expected.items():
        assert (gradient - gathered[name]).abs().max() < 1e-5, name
