"""The pairs on which methods measure models, and the loss of an embedder on them."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.pairs.shards import text_key
from data_pipeline.pairs.text_pairs import Pairs
from trainer.embedder import Embedder
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.objective import NO_PARTNER, Gathered, PairVectors

LOSS = InfoNce(temperature=0.05, directions=("query_to_doc",))
"""The loss of the package LM-Cocktail."""


class Weights(NamedTuple):
    """What `InfoNce` reads of a batch."""

    weights: torch.Tensor


def sample(pairs: Pairs, most: int, seed: int) -> Pairs:
    """At most `most` of the pairs, in their order, of each task as many; the choice depends on ids, tasks and the seed only."""
    by_chance = sorted(range(len(pairs)), key=lambda place: keyed_random.key("merge", seed, pairs.ids[place]))
    before: Counter[str] = Counter()
    turns = {}
    for place in by_chance:
        task = pairs.tasks[place]
        turns[place] = before[task]
        before[task] += 1
    return pairs.take(sorted(sorted(by_chance, key=turns.__getitem__)[:most]))


def loss(embedder: Embedder, pairs: Pairs) -> float:
    """The mean InfoNCE loss of the pairs; the negatives of an anchor are all documents of other pairs and its own negatives."""
    owners = torch.tensor([*range(len(pairs)), *(pair for pair, texts in enumerate(pairs.negatives) for _ in texts)])
    negatives = [text for texts in pairs.negatives for text in texts]
    sides = (("query", pairs.queries), ("document", [*pairs.positives, *negatives]))
    vectors = [embedder.encode(texts, prompt_name=name) for name, texts in sides]
    anchor_keys, positive_keys, negative_keys = map(_keys, (pairs.anchors, pairs.positives, negatives))
    no_partner = torch.full_like(negative_keys, NO_PARTNER)
    in_batch = torch.tensor(pairs.in_batch)
    anchors = _texts(vectors[0], anchor_keys, positive_keys, owners[: len(pairs)], in_batch)
    documents = _texts(
        vectors[1], torch.cat([positive_keys, negative_keys]), torch.cat([anchor_keys, no_partner]), owners, in_batch
    )
    with torch.no_grad():
        losses = LOSS(PairVectors(anchors, documents), Weights(anchors.weights))  # type: ignore[arg-type]
    return float(losses.double().mean())


def _keys(texts: list[str]) -> torch.Tensor:
    return torch.tensor([text_key(text) for text in texts], dtype=torch.int64)


def _texts(
    vectors: NDArray[np.float32], keys: torch.Tensor, partners: torch.Tensor, owners: torch.Tensor, in_batch: torch.Tensor
) -> Gathered:
    """One side of the pairs, as on a single rank."""
    units = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    return Gathered(units, units, keys, partners, owners, torch.ones(len(units)), first=0, in_batch=in_batch[owners])
