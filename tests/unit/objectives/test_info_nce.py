"""Losses against their formulas, and the gathered gradient against one process with the whole batch."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_pipeline.pairs.batch import PairBatch
from tests.conftest import FAMILIES, tiny_model
from trainer.models.dual_encoder import DualEncoder
from trainer.models.packed_lm import bits_per_byte
from trainer.objectives.info_nce import info_nce


def test_info_nce_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=1)
    d = torch.nn.functional.normalize(torch.randn(7, 8, generator=generator), dim=1)
    keys = torch.tensor([10, 11, 12, 13, 10, 15, 16])  # document 4 has the text of document 0
    weights = torch.tensor([1.0, 1, 1, 1, 1, 1, 0])  # document 6 only fills up
    found = info_nce(q, d, torch.arange(4), keys, weights, 0.05)
    for i in range(4):
        visible = [j for j in range(7) if j == i or (keys[j] != keys[i] and weights[j] > 0)]
        s = [math.exp(float(q[i] @ d[j]) / 0.05) for j in visible]
        assert abs(float(found[i]) + math.log(s[visible.index(i)] / sum(s))) < 1e-4


def test_info_nce_equals_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    generator = torch.Generator().manual_seed(1)
    q, d = torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)

    class Stub(torch.nn.Module):
        def forward(self, features):  # type: ignore[no-untyped-def]
            return {"sentence_embedding": features["v"]}

    theirs = MultipleNegativesRankingLoss(Stub(), scale=20.0)([{"v": q}, {"v": d}], None)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (q, d)]
    ours = info_nce(*unit, torch.arange(6), torch.arange(6), torch.ones(6), 1 / 20)
    assert abs(float(ours.mean() - theirs)) < 1e-5


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
    """Ragged hard negatives and a row of weight 0 included (specs/embedder.md 2.2)."""
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
