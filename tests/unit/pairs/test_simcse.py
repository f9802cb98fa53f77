"""Pairs from text alone (SimCSE), and configurations without pairs."""

import random

import pytest

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.pairs.builders.simcse import SimCse
from ray_jobs.config.load import load
from ray_jobs.job import jobs

TEXT = [
    ("el", "Το αρχείο δεν βρέθηκε.\nΑποθήκευση\nΚλείνει το παράθυρο διαλόγου"),
    ("tr", "Dosya bulunamadı ve açılmadı.\nThe file was not found"),
    ("el", "το  αρχείο ΔΕΝ βρέθηκε.\n\nΈνα δύο τρία τέσσερα"),
    ("ja", "ファイルが見つかりません。"),
]


def test_a_line_is_its_own_positive_and_equal_lines_come_once() -> None:
    pairs = SimCse()(TEXT, 100, seed=0)
    assert pairs.anchors == pairs.positives
    assert sorted(zip(pairs.langs, pairs.anchors, strict=True)) == sorted(
        [
            ("el", "Το αρχείο δεν βρέθηκε."),
            ("el", "Κλείνει το παράθυρο διαλόγου"),
            ("tr", "Dosya bulunamadı ve açılmadı."),
            ("tr", "The file was not found"),
            ("el", "Ένα δύο τρία τέσσερα"),
            ("ja", "ファイルが見つかりません。"),
        ]
    )
    assert len(set(pairs.ids)) == len(pairs)
    assert pairs.negatives == [[]] * len(pairs)


def test_the_sample_depends_on_the_lines_and_not_on_their_order() -> None:
    lines = [("und", f"line number {number} of many") for number in range(1000)]
    pairs = SimCse()(lines, 100, seed=3)
    shuffled = lines.copy()
    random.Random(5).shuffle(shuffled)
    assert SimCse()(shuffled, 100, seed=3) == pairs
    assert len(pairs) == 100
    assert set(SimCse()(lines, 50, seed=3).anchors) < set(pairs.anchors)  # the smallest of one order
    assert set(SimCse()(lines, 100, seed=4).anchors) != set(pairs.anchors)
    places = sorted(int(anchor.split()[2]) for anchor in pairs.anchors)
    assert places[0] < 100
    assert places[-1] > 900


def test_text_without_a_sentence_is_an_error() -> None:
    with pytest.raises(DataError, match="no line of it has 3 words"):
        SimCse()([("en", "OK\nCancel all")], 10, seed=0)


@pytest.fixture
def path(tmp_path) -> str:
    (tmp_path / "a.yaml").write_text("text: t\nsource_model: m\noutput: out\n")
    return str(tmp_path / "a.yaml")


def test_a_text_and_a_model_are_enough(path: str) -> None:
    config = load(path, [])
    assert (config.pairs, config.test_pairs, config.method) == (None, None, "focus")
    assert set(config.compare.methods) == {"scratch", "resize", "random", "mean", "script_moments", "fvt", "focus"}
    assert load(path, ["pairs=p"]).method == "ramen"
    assert set(load(path, ["pairs=p"]).compare.methods) - set(config.compare.methods) == {
        "wechsel",
        "ofa",
        "tokenadapt",
        "ramen",
        "trans_tokenizers",
        "aligned",
    }
    assert load(path, ["compare.methods=[auto,mean+fvt,mean]"]).compare.methods[-1] == "mean+fvt"
    given = [f"transfer.methods.ofa.space.{name}=x" for name in ("source_vectors", "dictionary")]
    assert "ofa" in load(path, given).compare.methods


@pytest.mark.parametrize(
    ("job", "given", "missing"),
    [
        ("serve", ["serve.model=m"], ""),
        ("serve", [], "text, source_model, output"),
        ("merge", ["merge.models=[a,b]", "output=o"], ""),
        ("embed", ["embed.model=m", "output=o", "pairs=p"], ""),
        ("embed", ["embed.model=m", "pairs=p"], "output"),
        ("embed", ["pairs=p", "output=o"], "text, source_model"),
        ("drift", [], "output"),
        *((job, [], "text, source_model, output") for job in jobs() if job != "drift"),
    ],
)
def test_a_job_requires_exactly_the_keys_that_it_needs(tmp_path, job: str, given: list[str], missing: str) -> None:
    (tmp_path / "a.yaml").write_text("seed: 0\n")
    if not missing:
        assert load(str(tmp_path / "a.yaml"), given, job).text == ""
        return
    with pytest.raises(ConfigError, match=f"{missing} must be given"):
        load(str(tmp_path / "a.yaml"), given, job)
