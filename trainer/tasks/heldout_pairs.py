"""Retrieval on held-out pairs, computed by all ranks during training."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.pairs.batch import Chunk, batches_by_length, pad_rows
from data_pipeline.pairs.text_form import TokenizedText
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards.build import load_tokenizer
from trainer.collectives import from_first_rank
from trainer.embedder import BATCH_TOKENS, with_padding
from trainer.evaluation import retrieval
from trainer.tasks.contrastive import ContrastiveTask


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutPairs:
    """The pairs to retrieve, the same at every step of every run."""

    measure: ClassVar[str] = "retrieval"
    """The score that the run keeps."""
    pairs: Pairs
    ids: list[TokenizedText]
    """Token ids of all anchors, then of all positives."""
    pad: int

    def score(self, engine: Any, rank: int, world: int) -> dict[str, Any]:
        """The scores as JSON, the same on every rank and for any number of ranks; every rank calls it.

        `retrieval` holds accuracy@1 and MRR@10 both ways, `by_language` those of each language if there are several.
        """
        vectors = _vectors(engine, self, rank, world).cpu().numpy()
        ways, by_language = from_first_rank(
            lambda: retrieval.scores(vectors[: len(self.pairs)], vectors[len(self.pairs) :], self.pairs)
        )
        return {"retrieval": ways, "by_language": by_language, "pairs": len(self.pairs)}


def choose(pairs: Pairs, most: int, task: ContrastiveTask) -> HeldoutPairs:
    """At most `most` pairs, at even distances, tokenized for the task's model."""
    places = range(len(pairs)) if len(pairs) <= most else np.linspace(0, len(pairs) - 1, most).astype(int).tolist()
    chosen = pairs.take(places)
    tokenizer = with_padding(load_tokenizer(task.model_uri))
    pad = int(tokenizer.pad_token_id)
    sides = zip(task.forms, (chosen.queries, chosen.positives), strict=True)
    rows = [row for form, texts in sides for row in form.tokenize(tokenizer, texts, task.length)]
    return HeldoutPairs(pairs=chosen, ids=[row or TokenizedText([pad]) for row in rows], pad=pad)


def _vectors(engine: Any, heldout: HeldoutPairs, rank: int, world: int) -> torch.Tensor:
    """Unit vectors [2n, d] of all texts, on every rank.

    The batches, and so rounding, do not depend on the number of ranks. The ranks take turns; in the last round a rank without
    a batch repeats another, because a forward under ZeRO-3 is collective.
    """
    dealt = list(batches_by_length(heldout.ids, BATCH_TOKENS))
    found: torch.Tensor | None = None
    engine.eval()
    with torch.no_grad():
        for start in range(0, len(dealt), world):
            mine = start + rank
            rows = dealt[mine % len(dealt)]
            chunk = pad_rows([heldout.ids[row] for row in rows], heldout.pad)
            vectors = engine.module(Chunk(*(part.to(engine.device) for part in chunk)))
            vectors = vectors if vectors.ndim == 2 else vectors[:, -1]
            if found is None:
                found = vectors.new_zeros(len(heldout.ids), vectors.shape[1])
            if mine < len(dealt):
                found[rows] = vectors
    engine.train()
    assert found is not None
    dist.all_reduce(found)  # one rank has each row, the others 0
    return found
