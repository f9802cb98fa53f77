"""Classification probe: a logistic regression on frozen vectors (Conneau and Kiela, LREC 2018; mteb's Classification)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.pairs.labelled_texts import TEST, TRAIN, LabelledTexts
from trainer.evaluation import bootstrap
from trainer.evaluation.measured import Measured

if TYPE_CHECKING:
    from trainer.evaluation.encoder import Encoder

_TEST_SHARE = 0.2
_STEPS = 1_000
"""Most steps of the solver. mteb's 100 end before it converges on many labels."""
Numbers = NDArray[np.float64]


def classification(embedder: Encoder, labelled: LabelledTexts) -> Measured:
    """Accuracy and macro-averaged F1 on the test texts.

    Differences from mteb, which fits ten classifiers on eight training texts of each label: one classifier, on all of them.
    """
    from sklearn.linear_model import LogisticRegression

    vectors = embedder.encode(labelled.texts).astype(np.float64)
    splits = np.array(labelled.splits or split(labelled.texts, labelled.labels))
    labels = np.unique(labelled.labels, return_inverse=True)[1]
    is_train = splits == TRAIN
    probe = LogisticRegression(max_iter=_STEPS).fit(vectors[is_train], labels[is_train])
    gold, predicted = labels[~is_train], probe.predict(vectors[~is_train])
    found = {name: float(value[0]) for name, value in measures(gold, predicted, np.ones((1, len(gold)))).items()}
    replicates = bootstrap.replicates(len(gold), lambda places: measures(gold, predicted, _times_drawn(places)))
    counts = {"train": int(is_train.sum()), "test": len(gold), "labels": len(set(labelled.labels))}
    return Measured(scores=found | bootstrap.intervals(replicates) | counts, replicates=replicates)


def split(texts: list[str], labels: list[str]) -> list[str]:
    """`train` or `test` for each text: a fifth of each label is for the test, at least one if there are two texts.

    Which fifth depends on the texts, not on their order.
    """
    of_label: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        of_label[label].append(place)
    splits = [TRAIN] * len(texts)
    for label, places in of_label.items():
        ordered = sorted(places, key=lambda place: keyed_random.key("classification", label, texts[place]))
        count = max(1, round(_TEST_SHARE * len(places))) if len(places) > 1 else 0
        for place in ordered[:count]:
            splits[place] = TEST
    return splits


def measures(gold: NDArray[np.int64], predicted: NDArray[np.int64], times: Numbers) -> dict[str, Numbers]:
    """Accuracy and macro-averaged F1, [b] each, over the labels that a sample has or that are predicted for it.

    Args:
        times: how often each text is in each sample, [b, n].
    """
    names = np.unique(np.concatenate([gold, predicted]))
    are, found = (values[:, None] == names for values in (gold, predicted))
    right, there, named = (times @ columns.astype(np.float64) for columns in (are & found, are, found))
    f1 = 2 * right / np.maximum(there + named, 1.0)
    occurs = there + named > 0
    return {"accuracy": right.sum(axis=1) / times.sum(axis=1), "f1": f1.sum(axis=1) / occurs.sum(axis=1)}


def _times_drawn(places: NDArray[np.int64]) -> Numbers:
    """How often each of n places is in each sample, [b, n]."""
    b, n = places.shape
    drawn = (places + n * np.arange(b)[:, None]).ravel()
    return np.bincount(drawn, minlength=b * n).reshape(b, n).astype(np.float64)
