"""Clustering: how well k-means finds labels again (V-measure: Rosenberg and Hirschberg, EMNLP 2007), as mteb measures it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.pairs.labelled_texts import LabelledTexts
from trainer.evaluation.measured import Measured

if TYPE_CHECKING:
    from trainer.evaluation.encoder import Encoder

SEEDS = 3
_BATCH = 500


def clustering(embedder: Encoder, labelled: LabelledTexts) -> Measured:
    """The mean V-measure of mini-batch k-means with three seeds, and its deviation; a cluster for each label.

    The column split is not used: nothing is trained on labels.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    vectors = embedder.encode(labelled.texts)
    count = len(set(labelled.labels))
    found = []
    for seed in range(SEEDS):
        clusters = MiniBatchKMeans(count, batch_size=_BATCH, n_init="auto", random_state=seed).fit_predict(vectors)
        found.append(float(v_measure_score(labelled.labels, clusters)))
    counts = {"texts": len(labelled), "labels": count}
    return Measured(
        scores={"v_measure": float(np.mean(found)), "v_measure_std": float(np.std(found)), "v_measures": found} | counts
    )
