"""The ranges of an embedder's values, by texts of its training: with them the endpoint answers with bytes."""

from itertools import accumulate

import ray

from cluster.capacity import has_gpus
from data_pipeline.artifacts import storage
from data_pipeline.pairs.text_pairs import Pairs
from trainer import quantization
from trainer.embedder import Embedder
from trainer.quantization import Calibration

_TEXTS, _TOKENS = 10_000, 100_000
"""Texts and tokens that are encoded, at most."""


def add(uri: str, training: Pairs) -> None:
    """Calibrates the embedder in a folder by evenly spaced pairs of its training."""
    spaced = slice(None, None, -(-2 * len(training) // _TEXTS))
    texts = {"query": training.anchors[spaced], "document": training.positives[spaced]}
    calibrations = ray.get(calibrate.options(num_gpus=int(has_gpus())).remote(uri, texts))
    with storage.local_output(uri) as folder:
        quantization.save(folder, calibrations)


@ray.remote(num_cpus=1)
def calibrate(uri: str, texts: dict[str, list[str]]) -> dict[quantization.Key, Calibration]:
    """The calibrations of an embedder by texts of each side, on the GPU that Ray gives the task, if it gives one."""
    embedder = Embedder.load_for_inference(uri)
    by_side = [embedder.tokenize(some, side) for side, some in texts.items()]
    alternating = [row for rows in zip(*by_side, strict=True) for row in rows]
    totals = accumulate(map(len, alternating))
    embedder.calibrate([row for row, total in zip(alternating, totals, strict=True) if total <= _TOKENS])
    return embedder.calibrations
