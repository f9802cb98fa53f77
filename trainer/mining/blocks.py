"""The blocks of a mining, each a file: vectors of some texts, the nearest texts of some queries, scores of some couples.

A block that is there is not made again. Its content depends on its texts alone, not on how many processes work.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError
from trainer.embedder import Embedder, own_device
from trainer.mining.cross_encoder import CrossEncoder
from trainer.mining.nearest import nearest
from trainer.transfer.search.exact import normalise_rows

BLOCK = 4096
"""Texts of a block."""
Arrays = dict[str, NDArray[Any]]


def cut(count: int, size: int = BLOCK) -> list[slice]:
    """Slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def load_teacher(uri: str, max_length: int) -> CrossEncoder:
    """A cross-encoder on this process's own device."""
    teacher = CrossEncoder.load(uri, max_length)
    teacher.model.to(own_device())
    return teacher


def encode(job: dict[str, Any], embedder: Embedder) -> str:
    """Writes the unit vectors of a job's `texts` with the prompt of its `side`, on the grid of `normalise_rows`, to its `uri`.

    Raises:
        ModelError: a vector is not finite.
    """
    if not storage.exists(job["uri"]):
        vectors = embedder.encode(job["texts"], prompt_name=job["side"])
        _check_finite(np.isfinite(vectors.sum(axis=1)), job["texts"], "vector", "mine.model")
        unit, _ = normalise_rows(torch.from_numpy(vectors))
        write(job["uri"], {"vectors": unit.numpy()})
    return str(job["uri"])


def search(job: dict[str, Any]) -> str:
    """Writes the nearest texts of a block of queries, and the scores of the texts that it names.

    Args:
        job: `queries` and `texts`, the URIs of vectors; `count`, how many of the texts are candidates; `k`; `rows` and
            `places`, queries of the block and texts to score [w]; `uri` to write to.
    """
    if storage.exists(job["uri"]):
        return str(job["uri"])
    queries = torch.from_numpy(read(job["queries"])["vectors"]).to(own_device())
    rows, places = (np.array(job[name], np.int64) for name in ("rows", "places"))
    scores = np.zeros(len(rows))

    def blocks() -> Iterator[torch.Tensor]:
        """The candidates in each block; also scores the texts to score."""
        for number, uri in enumerate(job["texts"]):
            vectors = torch.from_numpy(read(uri)["vectors"])
            here = np.flatnonzero(places // BLOCK == number)
            inside = torch.from_numpy(places[here] - number * BLOCK)
            left, right = queries[torch.from_numpy(rows[here])].cpu().double(), vectors[inside].double()
            scores[here] = (left * right).sum(dim=1).numpy()
            if number * BLOCK < job["count"]:
                yield vectors[: job["count"] - number * BLOCK]

    found = nearest(queries, blocks(), job["k"])
    write(job["uri"], {"index": found.rows.cpu().numpy(), "scores": found.scores.cpu().numpy(), "asked": scores})
    return str(job["uri"])


def score(job: dict[str, Any], teacher: CrossEncoder) -> str:
    """Writes the teacher's scores of a job's `lefts` and `rights` to its `uri`.

    Raises:
        ModelError: a score is not finite.
    """
    if not storage.exists(job["uri"]):
        scores = teacher.score(job["lefts"], job["rights"])
        _check_finite(np.isfinite(scores), job["rights"], "score", "mine.teacher")
        write(job["uri"], {"scores": scores})
    return str(job["uri"])


def _check_finite(is_finite: NDArray[np.bool_], texts: Sequence[str], what: str, key: str) -> None:
    """Checks what a model says of texts; else raises ModelError. A text of score NaN would be the nearest of all."""
    if not is_finite.all():
        text = texts[int(is_finite.argmin())]
        raise ModelError(
            f"the {what} of a text is not finite: {text[:60]!r}.", key, "Take another model, or leave the text out."
        )


def write(uri: str, arrays: Arrays) -> None:
    """Writes arrays by name, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(uri, buffer.getvalue())


def read(uri: str) -> Arrays:
    """The arrays that `write` wrote."""
    with np.load(io.BytesIO(storage.read_bytes(uri))) as file:
        return {name: file[name] for name in file.files}


def read_all(uris: Sequence[str], name: str) -> NDArray[Any]:
    """One array of each file, concatenated."""
    return np.concatenate([read(uri)[name] for uri in uris]) if uris else np.zeros(0)
