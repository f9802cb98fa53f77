"""`scion mine`: hard negatives for the training pairs, by an embedder, and the scores of a teacher."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from cluster.capacity import has_gpus
from data_pipeline import keyed_random
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.pairs.shards import text_key
from data_pipeline.ray_map import ray_map
from data_pipeline.sources import documents
from data_pipeline.text.clean import clean
from data_pipeline.text.reserved import ReservedSentences
from ray_jobs import pretrain
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.stage import Stage, main_start, require
from trainer.embedder import Embedder
from trainer.mining import blocks
from trainer.mining.candidates import Candidates, arrange
from trainer.mining.choose import Drawn, draw

JOB = Job(
    summary="hard negatives for the pairs, and a teacher's scores",
    reads="pairs; OUTPUT/pretrain, or any embedder with mine.model=FOLDER",
    writes="OUTPUT/mine: pairs.parquet, which embed.mined=true trains on",
    keys=("pairs", "test_pairs", "mine"),
    after=("pretrain",),
    required=("text", "source_model", "pairs", "output"),
    instead=("mine.model", "embed.model"),
    required_with_instead=("pairs", "output"),
)
KIND = "pairs"
FILE = "pairs.parquet"
_MOST_EXCLUDED = 200
"""Nearest texts beyond the last rank, in place of those that are no negatives; a query with more has a shorter window."""
_WORKING = "working"


def spec(config: ScionConfig) -> Spec:
    """The specification of the mined pairs; fingerprints their inputs."""
    inputs = data_fingerprints(config, "pairs", "test_pairs", "mine.corpus")
    given = config.mine.model
    inputs["model"] = (
        pretrain.spec(config, main_start(config)).id
        if given is None
        else model_fingerprint(given, key="mine.model", pools=True)
    )
    if config.mine.teacher is not None:
        inputs["teacher"] = model_fingerprint(config.mine.teacher, key="mine.teacher")
    settings = artifact.identity(config.mine)
    for name in ("model", "corpus", "teacher"):  # known by their content
        del settings[name]
    return Spec(uri=config.at("mine"), kind=KIND, config={"mine": settings, "seed": config.seed}, inputs=inputs)


def pairs_of(uri: str) -> str:
    """The file of pairs in the artefact at `uri`."""
    return storage.join(uri, FILE)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="mine", spec=spec(config), fill=partial(fill, config), is_resumable=True)


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes the pairs with hard negatives, from the blocks that a killed run left. Returns a line for the user."""
    cache = storage.join(draft.uri, "source")
    training = pairs.load(config.pairs, cache, key="pairs")
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    pairs.check_disjoint(training, testing)
    problem = _candidates(config, training, testing, cache)
    storage.remove(cache)
    work = _Work(config, storage.join(draft.uri, _WORKING), report)
    given = config.mine.model
    model = require(pretrain.spec(config, main_start(config)), "pretrain") if given is None else given
    mined = work.mine(training, problem, model)
    if config.mine.teacher is not None:
        mined = work.annotate(mined, config.mine.teacher)
    storage.write_bytes(storage.join(draft.uri, FILE), _parquet(mined))
    storage.remove(storage.join(draft.uri, _WORKING))
    counts = [len(after) - len(before) for after, before in zip(mined.negatives, training.negatives, strict=True)]
    draft.metrics = {"pairs": len(mined), "candidates": problem.count, "negatives": sum(counts)}
    draft.metrics |= {
        "left_out": dict(work.left_out),
        "pairs_by_negatives": {str(n): c for n, c in sorted(Counter(counts).items())},
    }
    short = sum(count < config.mine.negatives for count in counts)
    return f"{sum(counts):,} hard negatives for {len(mined):,} pairs among {problem.count:,} texts" + (
        f", {short:,} pairs have fewer than {config.mine.negatives}" if short else ""
    )


def _candidates(config: ScionConfig, training: pairs.Pairs, testing: pairs.Pairs, cache: str) -> Candidates:
    """The texts of the mining; no text with a sentence of the test pairs is a candidate."""
    reserved = ReservedSentences.of([*testing.anchors, *testing.positives])
    given = None if config.mine.corpus is None else list(_corpus(config.mine.corpus, cache))
    own = [*training.positives, *(text for texts in training.negatives for text in texts)]
    forbidden = {text_key(text) for text in (own if given is None else given) if reserved.occurs_in(text)} if testing else set()
    return arrange(training, given, forbidden=frozenset(forbidden))


def _corpus(spec: str, cache: str) -> Iterator[str]:
    """The cleaned texts at `spec`, without empty ones."""
    for unit in documents.units(documents.resolve(spec, cache, key="mine.corpus")):
        table = documents.read(unit, ("text",), (), key="mine.corpus")
        yield from filter(None, (clean(text or "") for text in table["text"].to_pylist()))


class _Work:
    """The blocks of a mining below `folder`, made by Ray actors."""

    def __init__(self, config: ScionConfig, folder: str, report: Reporter) -> None:
        self._config, self._folder, self._report = config, folder, report
        self._actors: dict[str, Any] = {"actors": config.mine.actors, "gpus": int(has_gpus())}
        self.left_out: Counter[str] = Counter(excluded=0, margin=0, max_score=0)
        """The nearest texts that became no negatives, by the reason."""

    def mine(self, training: pairs.Pairs, problem: Candidates, model: str) -> pairs.Pairs:
        """The pairs with drawn negatives behind their own, all with the cosines of the model."""
        files = {
            name: self._encode(name, texts, side, model)
            for name, texts, side in (("queries", problem.queries, "query"), ("texts", problem.texts, "document"))
        }
        found = self._search(files, problem)
        asked = dict(zip(_asked(problem), blocks.read_all(found, "asked").tolist(), strict=True))
        drawn = list(self._draw(found, problem, asked))
        negatives, scores = [], []
        for query, own in zip(problem.query_of, problem.negatives_of, strict=True):
            places = [*own, *drawn[query].places.tolist()]
            negatives.append([problem.texts[place] for place in places])
            scores.append([*(asked[query, place] for place in own), *drawn[query].scores.tolist()])
        positive = [asked[query, place] for query, place in zip(problem.query_of, problem.positive_of, strict=True)]
        return replace(training, negatives=negatives, positive_scores=positive, negative_scores=scores)

    def annotate(self, mined: pairs.Pairs, teacher: str) -> pairs.Pairs:
        """The pairs with the teacher's scores of positives and negatives."""
        couples = [(anchor, positive) for anchor, positive in zip(mined.anchors, mined.positives, strict=True)]
        couples += [(anchor, text) for anchor, texts in zip(mined.anchors, mined.negatives, strict=True) for text in texts]
        jobs = [
            {"lefts": [left for left, _ in couples[part]], "rights": [right for _, right in couples[part]], "uri": uri}
            for part, uri in self._parts("scores", len(couples))
        ]
        setup = partial(blocks.load_teacher, teacher, self._config.mine.teacher_length)
        files = ray_map(blocks.score, jobs, setup=setup, progress=self._report.part("teacher"), **self._actors)
        scores = iter(blocks.read_all(files, "scores").tolist())
        positive = [next(scores) for _ in mined.anchors]
        return replace(
            mined, positive_scores=positive, negative_scores=[[next(scores) for _ in texts] for texts in mined.negatives]
        )

    def _encode(self, name: str, texts: list[str], side: str, model: str) -> list[str]:
        """The files of the vectors of some texts, with the model's prompt for their side."""
        jobs = [{"texts": texts[part], "side": side, "uri": uri} for part, uri in self._parts(name, len(texts))]
        setup = partial(Embedder.load_for_inference, model)
        return ray_map(blocks.encode, jobs, setup=setup, progress=self._report.part(f"encode {name}"), **self._actors)

    def _search(self, files: dict[str, list[str]], problem: Candidates) -> list[str]:
        """The files of the nearest texts of each block of queries."""
        most = min(_MOST_EXCLUDED, max(map(len, problem.excluded)))
        common = {"texts": files["texts"], "count": problem.count, "k": self._config.mine.last + most}
        asked = _asked(problem)
        queries = np.array([query for query, _ in asked])
        jobs = []
        for (part, uri), vectors in zip(self._parts("nearest", len(problem.queries)), files["queries"], strict=True):
            first, last = np.searchsorted(queries, [part.start, part.stop])
            rows = [(query - part.start, place) for query, place in asked[first:last]]
            jobs.append(
                common
                | {"queries": vectors, "rows": [row for row, _ in rows], "places": [place for _, place in rows], "uri": uri}
            )
        return ray_map(blocks.search, jobs, progress=self._report.part("search"), **self._actors)

    def _draw(self, found: list[str], problem: Candidates, asked: dict[tuple[int, int], float]) -> Iterator[Drawn]:
        """The negatives of each query."""
        query = 0
        for uri in found:
            block = blocks.read(uri)
            for index, scores in zip(block["index"], block["scores"], strict=True):
                made = draw(
                    index,
                    scores,
                    excluded=problem.excluded[query],
                    positive_score=min(asked[query, place] for place in problem.positives[query]),
                    keys=problem.keys,
                    key=keyed_random.key("mine", self._config.seed, problem.queries[query]),
                    config=self._config.mine,
                )
                self.left_out.update(excluded=made.excluded, margin=made.margin, max_score=made.max_score)
                query += 1
                yield made

    def _parts(self, name: str, count: int) -> list[tuple[slice, str]]:
        """The blocks of `count` texts, and a file for each."""
        parts = blocks.cut(count)
        return [(part, storage.join(self._folder, f"{name}-{number:05d}.npz")) for number, part in enumerate(parts)]


def _asked(problem: Candidates) -> list[tuple[int, int]]:
    """The queries and the places of the texts whose scores are written or compared, ascending and each once."""
    wanted = {(query, place) for query, places in enumerate(problem.positives) for place in places}
    for query, places in zip(problem.query_of, problem.negatives_of, strict=True):
        wanted.update((query, place) for place in places)
    return sorted(wanted)


def _parquet(mined: pairs.Pairs) -> bytes:
    """The pairs as a file that `pairs=` reads; equal pairs give equal bytes."""
    table = pa.table(
        {
            "id": pa.array(mined.ids, pa.string()),
            "anchor": pa.array(mined.anchors, pa.string()),
            "positive": pa.array(mined.positives, pa.string()),
            "negatives": pa.array(mined.negatives, pa.list_(pa.string())),
            "positive_score": pa.array(mined.positive_scores, pa.float64()),
            "negative_scores": pa.array(mined.negative_scores, pa.list_(pa.float64())),
            "task": pa.array(mined.tasks, pa.string()),
            "prompt": pa.array(mined.prompts, pa.string()),
            "in_batch_negatives": pa.array(mined.in_batch, pa.bool_()),
            "lang": pa.array(mined.langs, pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=1 << 14)
    return buffer.getvalue()


def needs_ray(config: ScionConfig) -> bool:
    """Whether there is something to mine.

    Raises:
        ArtifactError: the model is not there.
    """
    if stage(config).finished() is not None:
        return False
    if config.mine.model is None:
        require(pretrain.spec(config, main_start(config)), "pretrain")
    return True


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
