"""Negatives mixed from a pair's own hard negatives, online (KaLM-Embedding-V2, arXiv:2506.20923, section 3.2).

With the unit vectors n_1 ... n_M of an anchor q's hard negatives:

    pairs    h = norm(lambda n_a + (1 - lambda) n_b),   lambda ~ Beta(2, 2),   a and b drawn at random, a != b
    list     h = norm(sum_k softmax_k(s(q, n_k) / tau) n_k),   no gradient through the softmax

A mixed negative is a candidate of its own anchor only. The gradient flows to the negatives that it is made of.

The abstract states the idea; Beta(2, 2) and the softmax are our reading. A pair with fewer than two hard negatives has none to
mix, and two that cancel each other out give none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.objectives.objective import PairVectors
from trainer.objectives.own_documents import by_pair

if TYPE_CHECKING:
    import torch

_SHORTEST = 1e-3
"""The length of a sum below which its direction says nothing."""


def mixed_negatives(reps: PairVectors, pairs: int, with_list: bool, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed negatives of this rank's anchors, unit vectors [B, K, d], and which of them there are, bool [B, K].

    Args:
        pairs: mixtures of two for each anchor.
        with_list: whether to add the mixture of all; K is then pairs + 1.
        temperature: divides the cosines of that mixture.
    """
    import torch

    negatives, is_there = _by_anchor(reps)
    sums, enough = [], is_there.sum(dim=1) >= 2
    if pairs:
        sums.append(_pair_sums(negatives, is_there, pairs))
    if with_list:
        sums.append(_list_sum(negatives, is_there, reps.anchors.own, temperature)[:, None])
    mixed = torch.cat(sums, dim=1)
    lengths = mixed.norm(dim=2)
    return torch.nn.functional.normalize(mixed, dim=2, eps=_SHORTEST), enough[:, None] & (lengths >= _SHORTEST)


def _by_anchor(reps: PairVectors) -> tuple[torch.Tensor, torch.Tensor]:
    """The hard negatives of each anchor, [B, most, d] filled up with 0, and which are there, bool [B, most].

    One that has the text of the anchor or of the positive is no negative.
    """
    import torch

    anchors, documents = reps.anchors, reps.documents
    count = len(anchors.own)
    mine = slice(documents.first + count, documents.first + len(documents.own))
    rows = documents.owners[mine] - anchors.owners[anchors.first]
    rows_safe = rows.clamp(0, count - 1)  # padding belongs to no pair
    keys = documents.keys[mine]
    texts = [column[anchors.first : anchors.first + count][rows_safe] for column in (anchors.keys, anchors.partners)]
    usable = (documents.weights[mine] > 0) & (keys != texts[0]) & (keys != texts[1])
    table, is_there = by_pair(rows_safe[usable], count)
    vectors = documents.own[count:][usable]
    if table.shape[1] < 2:  # nobody has two to mix
        return vectors.new_zeros(count, 2, vectors.shape[1]), torch.zeros(count, 2, dtype=torch.bool, device=keys.device)
    return vectors[table] * is_there[..., None], is_there


def _pair_sums(negatives: torch.Tensor, is_there: torch.Tensor, pairs: int) -> torch.Tensor:
    """lambda n_a + (1 - lambda) n_b of two random negatives, [B, pairs, d]."""
    import torch

    counts = is_there.sum(dim=1, keepdim=True).clamp_min(2)
    draws = torch.rand(2, len(negatives), pairs).to(negatives.device)
    first = (draws[0] * counts).long()
    second = (first + 1 + (draws[1] * (counts - 1)).long()) % counts
    share = torch.distributions.Beta(2.0, 2.0).sample(draws.shape[1:]).to(negatives)[..., None]
    rows = torch.arange(len(negatives), device=negatives.device)[:, None]
    return share * negatives[rows, first] + (1 - share) * negatives[rows, second]


def _list_sum(negatives: torch.Tensor, is_there: torch.Tensor, anchors: torch.Tensor, temperature: float) -> torch.Tensor:
    """The sum of all negatives of each anchor, the harder ones with more weight, [B, d]."""
    import torch

    cosines = torch.einsum("bd,bkd->bk", anchors, negatives).detach()
    shares = (cosines / temperature).masked_fill(~is_there, float("-inf")).softmax(dim=1).nan_to_num()
    return torch.einsum("bk,bkd->bd", shares, negatives)
