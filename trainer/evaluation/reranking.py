"""Reranking: the order by cosine of the candidates of each query (mteb's Reranking, in the form of AskUbuntu)."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from data_pipeline.pairs.candidates import Candidates
from data_pipeline.text.clean import digest
from trainer.evaluation import bootstrap, ranking
from trainer.evaluation.measured import Measured

if TYPE_CHECKING:
    from trainer.evaluation.encoder import Encoder


def reranking(embedder: Encoder, candidates: Candidates) -> Measured:
    """MAP over all candidates, and MRR at 10.

    A text that is a candidate twice is one candidate, and relevant if it is a positive. Ties stand in the order of a hash of
    the texts.
    """
    texts = list(dict.fromkeys(chain.from_iterable([*candidates.positives, *candidates.negatives])))
    place = {text: number for number, text in enumerate(texts)}
    name = {text: digest(text).hex() for text in texts}
    queries, documents = (
        embedder.encode(candidates.queries, prompt_name="query"),
        embedder.encode(texts, prompt_name="document"),
    )
    run, judged = {}, {}
    columns = zip(candidates.queries, candidates.positives, candidates.negatives, strict=True)
    for number, (_, positives, negatives) in enumerate(columns):
        own = list(dict.fromkeys([*positives, *negatives]))
        scores = documents[[place[text] for text in own]] @ queries[number]
        run[str(number)] = {name[text]: float(score) for text, score in zip(own, scores, strict=True)}
        judged[str(number)] = {name[text]: 1 for text in positives}
    depth = max(map(len, run.values()))
    ranked = ranking.rank_run(run, judged, depth)
    values = {"map": ranking.average_precision(ranked, depth), "mrr_at_10": ranking.mrr(ranked, 10)}
    replicates = bootstrap.means(values)
    found = {measure: float(scores.mean()) for measure, scores in values.items()}
    counts = {"queries": len(candidates), "documents": len(texts)}
    return Measured(scores=found | bootstrap.intervals(replicates) | counts, replicates=replicates)
