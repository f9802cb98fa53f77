"""The report of made-up artefacts: the content of the summary, and a self-contained page."""

import base64
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from data_pipeline.artifacts import artifact, fingerprints
from data_pipeline.artifacts.artifact import Artifact
from data_pipeline.errors import ArtifactError
from ray_jobs import evaluate, pipeline
from ray_jobs.config import load as configs
from ray_jobs.config.schema import CompareConfig
from ray_jobs.report import job, page, plots
from ray_jobs.report.figures import figures
from ray_jobs.report.score_tables import score_tables
from ray_jobs.report.summary import MODELS, STAGES, Summary, model_label, summarize, to_json

SCHEMA = Path(job.__file__).parent / "summary.schema.json"
VERSIONS = {"torch": "2.13.0", "ray": "2.60.0", "transformers": "5.14.1"}
EVIL = "</code><script>alert('$1^{')</script><img src=http://evil.example/x.png>"
STARTS = ("random", "transferred")
OF_GRAFTS = [model for model in MODELS if not model.startswith("model_")]
WITHOUT_MINING = [stage for stage in STAGES if stage != "mine"]
SECONDS = (6.42, 9.31, 2.07, 61.3, 58.8, 24.6, 25.1, 0.61, 12.4, 8.03)


def history(steps: int, first: float, last: float) -> list[dict[str, float]]:
    """A noisy loss that falls from one value towards another."""
    return [
        {
            "step": step,
            "loss": last + (first - last) * math.exp(-4 * step / steps) + 0.06 * math.sin(step * 2.3),
            "norm": 1.0,
            "rate": 1e-4,
            "seconds": 1.4,
            "data_wait": 0.01,
        }
        for step in range(steps)
    ]


def scores(forward: float, backward: float) -> dict[str, dict[str, float]]:
    def way(value: float) -> dict[str, float]:
        mean = value + 0.3 * value * (1 - value)
        intervals = {"accuracy_at_1_interval": [value - 0.02, value + 0.01], "mrr_at_10_interval": [mean - 0.02, mean + 0.01]}
        return {"accuracy_at_1": value, "mrr_at_10": mean} | intervals

    return {"forward": way(forward), "backward": way(backward)}


def chain(start: str) -> dict[str, dict[str, Any]]:
    """The metrics of a start's stages."""
    own = start == "transferred"
    shared = {"special_role": 5, "exact_copy": 1713, "filling": 2}
    fates = shared | ({"aligned": 9021, "composition": 1288, "random": 3} if own else {"random": 10312})
    return {
        "transfer": {
            "provenance": fates,
            "paper": "after Remy et al., COLM 2024",
            "parameters": 15_273_600,
            "placed": {"aligned": 9021, "fvt": 1288} if own else {"random": 0},
        },
        "pretrain": {
            "history": history(40, 9.3, 5.0 if own else 6.1),
            "bits_per_byte": {"0": 4.117 if own else 4.122, "40": 2.271 if own else 2.853},
            "bits_per_byte_by_language": {},
            "devices": {"NVIDIA H100 80GB HBM3": 2},
            "changes": [{"step": 18, "settings": {"steps": [30, 40]}, "from_the_start": False}] if own else [],
        },
        "embed": {
            "history": history(30, 3.1, 0.32 if own else 0.71),
            "retrieval": {"0": scores(0.2, 0.1), "30": scores(0.9 if own else 0.6, 0.8)},
        },
    }


def metrics(method: str) -> dict[str, dict[str, Any]]:
    """The metrics of every stage, as written by the jobs."""
    values = (0.034, 0.012, 0.021, 0.312, 0.148, 0.231, 0.688, 0.672)
    old = {"pieces_per_word": 6.412, "pieces_per_character": 1.021, "unknown": 0.0134}
    new = {"pieces_per_word": 1.873, "pieces_per_character": 0.298, "unknown": 0.0}
    found: dict[str, dict[str, Any]] = {
        "shard": {
            "documents": {"train": 4210, "heldout": 221, "empty": 3, "duplicate": 97, "in_heldout": 12},
            "fertility": {
                "source": old,
                "target": new,
            },
            "fertility_by_language": {"el": {"source": old, "target": new}},
            "rows": {"rows": 2801, "heldout": 148},
            "tokens": 351_902,
            "padding_share": 0.0185,
            "dataset": "0f3c" * 8,
        },
        "merge": {"models": 2},
        "evaluate": {
            "retrieval": {m: scores(v, 0.93 * v) for m, v in zip(OF_GRAFTS, values, strict=True)},
            "retrieval_by_language": {},
            "pairs": 500,
            "pairs_by_language": {"el": 500},
        },
        "serve": {"requests": 64, "max_abs_diff": 2.1e-7},
    }
    found |= chain("random" if method == "random" else "transferred")
    if method == "random":
        own = {m: ways for m, ways in found["evaluate"]["retrieval"].items() if not m.startswith("transferred")}
        found["evaluate"]["retrieval"] = own
    else:
        found |= {f"random/{job}": values for job, values in chain("random").items()}
    return found


def artefacts(method: str) -> dict[str, Artifact]:
    held = metrics(method)
    return {
        name: Artifact(
            uri=f"/out/{name}",
            kind="any",
            id=name,
            config={},
            inputs={},
            metrics=held[name],
            seconds=s,
            versions=VERSIONS,
        )
        for name, s in zip(WITHOUT_MINING, SECONDS, strict=True)
        if name in held
    }


def config(method: str = "aligned", output: str = "/out") -> dict[str, Any]:
    return {"method": method, "output": output, "source_model": "org/small-model", "shard": {"length": 128}, "seed": 0}


def summary_of(method: str = "aligned", **changes: Any) -> Summary:
    folders = {"random": ""} if method == "random" else {"transferred": "", "random": "random"}
    return summarize(artefacts(method), folders, config(method) | changes)


def page_of(summary: Summary) -> str:
    return page.render(summary, "method: aligned\nseed: 0\nmicro_batch: null\n")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages of two methods; drawing takes a second, so the tests share them."""
    return {method: page_of(summary_of(method)) for method in ("aligned", "random")}


class Reader(HTMLParser):
    """Collects the tags of a page and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_summary_matches_its_schema() -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(json.loads(to_json(summary_of())), schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError, match="accuracy"):
        jsonschema.validate(summary_of() | {"retrieval": {"merged": {"forward": {"accuracy": 1.0}}}}, schema)


def test_further_scores_have_a_table_for_each_metric() -> None:
    """None where only retrieval is measured."""
    held = artefacts("aligned")
    held["evaluate"].metrics.update(further_scores(("source_model", "transferred_trained")))
    summary = summarize(held, {"random": "random", "transferred": ""}, config("aligned"))
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(json.loads(to_json(summary)), schema, cls=jsonschema.Draft202012Validator)
    ranking, isotropy, similarity, classes, clusters, reranked, speed, nested = score_tables(summary)
    assert ranking.columns == ["model", "nDCG@10", "MAP@100", "recall@100"]
    assert [row[1:] for row in ranking.rows] == [["0.812 / 0.623", "0.790 / 0.790", "0.950 / 0.950"]] * 2
    assert isotropy.rows[0][1:] == ["0.120 / 0.200", "0.431 / 0.500"]
    assert similarity.rows[1][1:] == ["0.710", "0.650 to 0.760", "-", "0.690"]
    assert classes.rows[1][1:] == ["0.900", "0.850 to 0.950", "-", "0.800"]
    assert clusters.rows[1][1:] == ["0.400 ± 0.020"]
    assert reranked.rows[1][1:] == ["0.550", "0.500 to 0.600", "-", "0.660"]
    assert speed.rows[1][1:] == ["1,234", "45,679"]
    assert nested.rows[1][1:] == ["3", "64", "0.500 / 0.250", "2,469"]
    console = Console(width=80, file=io.StringIO())
    console.print(*map(job.score_table, score_tables(summary)), sep="\n")
    assert "…" not in console.file.getvalue()
    assert score_tables(json.loads(to_json(summary))) == score_tables(summary)
    html = page_of(summary)
    assert "Further scores" in html
    assert "0.650 to 0.760" in html
    assert score_tables(summary_of()) == []
    assert "Further scores" not in page_of(summary_of())
    assert "▲" not in html


def test_differences_from_the_source_model_that_are_significant_are_marked() -> None:
    """In the table of retrieval, in the further ones, and in the terminal; a note says what the marks mean."""
    held = artefacts("aligned")
    held["evaluate"].metrics.update(further_scores(("source_model", "transferred_trained")))
    better = {"difference": 0.042, "interval": [0.01, 0.071], "is_significant": True}
    worse = {"difference": -0.05, "interval": [-0.08, -0.02], "is_significant": True}
    same = {"difference": 0.001, "interval": [-0.02, 0.03], "is_significant": False}
    held["evaluate"].metrics["differences"] = {
        "retrieval": {"transferred_trained": {"forward": {"accuracy_at_1": better, "mrr_at_10": same}}},
        "ranking": {"transferred_trained": {"forward": {"ndcg_at_10": better}, "backward": {"ndcg_at_10": worse}}},
        "sts": {"transferred_trained": {"spearman": better}},
    }
    summary = summarize(held, {"random": "random", "transferred": ""}, config("aligned"))
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(json.loads(to_json(summary)), schema, cls=jsonschema.Draft202012Validator)
    ranking, _, similarity, *_ = score_tables(summary)
    assert [row[1] for row in ranking.rows] == ["0.812 / 0.623", "0.812 ▲ / 0.623 ▼"]
    assert [row[3] for row in similarity.rows] == ["-", "+0.042, +0.010 to +0.071 ▲"]
    marks = {row["model"]: [cell[-1] for cell in row["cells"]] for row in page.retrieval_rows(summary)}
    assert marks[model_label("transferred_trained")] == [" ▲", "", "", ""]
    assert not any(marks[model_label("source_model")])
    assert "better and worse than the first model" in page_of(summary)


def further_scores(models: tuple[str, ...]) -> dict[str, Any]:
    """As `scion evaluate` writes them."""
    way = {"ndcg_at_10": 0.812, "map_at_100": 0.79, "recall_at_100": 0.95, "queries": 500, "documents": 730}
    back = way | {"ndcg_at_10": 0.623, "documents": 700}
    sides = {"anchors": {"isoscore": 0.12, "mean_cosine": 0.431}, "positives": {"isoscore": 0.2, "mean_cosine": 0.5}}
    similarity = {"spearman": 0.71, "spearman_interval": [0.65, 0.76], "pearson": 0.69, "pairs": 1500}
    classes = {"accuracy": 0.9, "accuracy_interval": [0.85, 0.95], "f1": 0.8, "f1_interval": [0.7, 0.9]}
    clusters = {"v_measure": 0.4, "v_measure_std": 0.02, "v_measures": [0.38, 0.4, 0.42], "texts": 300, "labels": 5}
    reranked = {"map": 0.55, "map_interval": [0.5, 0.6], "mrr_at_10": 0.66, "mrr_at_10_interval": [0.6, 0.7]}
    found = {
        "ranking": {"forward": way, "backward": back},
        "isotropy": sides,
        "sts": similarity,
        "classification": classes | {"train": 240, "test": 60, "labels": 5},
        "clustering": clusters,
        "reranking": reranked | {"queries": 361, "documents": 7_000},
        "speed": {"texts_per_second": 1234.5, "tokens_per_second": 45_678.9, "texts": 128},
        "nested": {"forms": [{"layers": 3, "dimensions": 64, "retrieval": scores(0.5, 0.25), "texts_per_second": 2469.1}]},
    }
    return {name: dict.fromkeys(models, scores) for name, scores in found.items()}


def test_the_summary_has_every_documented_key() -> None:
    summary = summary_of()
    assert set(summary["retrieval"]) == set(OF_GRAFTS)
    for ways in summary["retrieval"].values():
        assert {way: set(values) for way, values in ways.items()} == {
            way: {"accuracy_at_1", "mrr_at_10", "accuracy_at_1_interval", "mrr_at_10_interval"}
            for way in ("forward", "backward")
        }
    assert summary["bits_per_byte"]["random"] == {"0": 4.122, "40": 2.853}
    assert set(summary["fertility"]) == {"source", "target"}
    assert {name: sum(codes.values()) for name, codes in summary["provenance"].items()} == dict.fromkeys(STARTS, 12_032)
    assert {job: [len(summary["loss"][job][start]) for start in STARTS] for job in ("pretrain", "embed")} == {
        "pretrain": [40, 40],
        "embed": [30, 30],
    }
    assert summary["serve"] == {"requests": 64, "max_abs_diff": 2.1e-7}
    assert summary["seconds"] == dict(zip(WITHOUT_MINING, SECONDS, strict=True))
    assert (summary["versions"], summary["method"], summary["config"]) == (VERSIONS, "aligned", config())


def test_an_embedder_of_a_given_model_has_a_page_without_a_transfer() -> None:
    """Its own models come first, then those that the user names."""
    held = {name: artefacts("aligned")[name] for name in ("embed", "evaluate")}
    names = ("peer", "model_trained", "source_model")
    held["evaluate"].metrics["retrieval"] = {name: scores(0.5, 0.4) for name in names}
    given = config() | {"source_model": "", "embed": {"model": "models/minilm"}}
    summary = summarize(held, {"model": ""}, given)
    jsonschema.validate(json.loads(to_json(summary)), json.loads(SCHEMA.read_text()), cls=jsonschema.Draft202012Validator)
    assert [row["model"] for row in page.retrieval_rows(summary)] == ["source model", "model, trained", "peer"]
    read = Reader(page_of(json.loads(to_json(summary))))
    assert "An embedder and its training" in read.text
    assert "models/minilm" in read.text
    assert "Other models are those of evaluate.models" in read.text
    again = "scion embed /out/config.yaml && scion evaluate /out/config.yaml && scion report /out/config.yaml"
    assert again in read.text
    for absent in ("Grafted", "pieces per word", "Packed rows", "Untrained"):
        assert absent not in read.text


def of_languages(*langs: str) -> dict[str, Any]:
    """A summary of text in several languages; the last one has no pairs."""
    summary = summary_of()
    for start in STARTS:
        summary["bits_per_byte_by_language"][start] = {
            step: {lang: value + place / 10 for place, lang in enumerate(langs)}
            for step, value in summary["bits_per_byte"][start].items()
        }
    pieces = summary["fertility_by_language"]["el"]
    summary["fertility_by_language"] = dict.fromkeys(langs, pieces)
    summary["pairs_by_language"] = dict.fromkeys(langs[:-1], 1250)
    summary["retrieval_by_language"] = {
        model: {lang: scores(0.5 + place / 10, 0.25) for place, lang in enumerate(langs[:-1])} for model in OF_GRAFTS
    }
    return summary


def test_each_of_several_languages_has_its_table() -> None:
    text, pairs = page.language_tables(of_languages("el", "ja", "tr"))
    assert text.columns == ["language", "pieces per word", "bits per byte, random", "bits per byte, transferred"]
    assert text.rows[1] == ["ja", "6.41 → 1.87", "4.222 → 2.953", "4.217 → 2.371"]
    assert pairs.columns[:3] == ["language", "pairs", "accuracy@1, source model"]
    assert pairs.rows[1:] == [["ja", "1,250", *["0.600 / 0.250"] * 3], ["tr", *["none"] * 4]]
    shown = page.render(of_languages("el", "ja", "tr"), "seed: 0\n")
    assert "4.217 → 2.371" in shown
    assert "0.600 / 0.250" in shown
    assert page.language_tables(summary_of()) == []
    assert "By language" not in page.render(summary_of(), "seed: 0\n")


def test_the_page_counts_the_tokens_of_each_method_of_a_chain() -> None:
    assert "Placed by aligned 9,021, fvt 1,288." in page.render(summary_of(), "seed: 0\n")


def test_summary_json_is_sorted_indented_and_ends_with_a_newline() -> None:
    text = to_json(summary_of()).decode()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_all_versions_are_named_if_the_stages_ran_with_different_ones() -> None:
    found = artefacts("aligned")
    late = {
        "uri": "",
        "kind": "",
        "id": "",
        "config": {},
        "inputs": {},
        "seconds": 1.0,
        "versions": {"torch": "2.14.0"},
    }
    found["merge"] = Artifact(**late, metrics={"models": 2})  # type: ignore[arg-type]
    summary = summarize(found, {"transferred": "", "random": "random"}, config())
    assert summary["versions"]["torch"] == "2.13.0, 2.14.0"


@pytest.mark.parametrize("method", ["aligned", "random"])
def test_the_page_loads_nothing_from_outside(method: str, pages: dict[str, str]) -> None:
    read = Reader(pages[method])
    for tag, attributes in read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert "url(" not in (attributes.get("style") or "")
    style = read.text.split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("method", ["aligned", "random"])
def test_every_image_has_an_alternative_text(method: str, pages: dict[str, str]) -> None:
    images = [attributes for tag, attributes in Reader(pages[method]).tags if tag == "img"]
    assert len(images) == 7
    for image in images:
        kind, content = str(image["src"]).split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(content).startswith(b"<svg")
        assert len(image["alt"] or "") > 40


@pytest.mark.parametrize("method", ["aligned", "random"])
def test_no_missing_value_reaches_the_reader(method: str, pages: dict[str, str]) -> None:
    read = Reader(pages[method])
    words = " ".join([read.text, *(value or "" for _, attributes in read.tags for value in attributes.values())])
    assert not re.search(r"\b(None|nan|inf|undefined)\b", words)


def test_the_headlines_compare_source_and_transferred_both_ways() -> None:
    first, second = page.headlines(summary_of())[:2]
    assert (first["value"], first["against"]) == ("0.688", ["source model 0.034", "random control 0.312"])
    assert (second["value"], second["against"]) == ("0.640", ["source model 0.032", "random control 0.290"])


def test_the_best_of_each_column_is_marked_even_if_two_share_it() -> None:
    summary = summary_of()
    summary["retrieval"]["merged"] = summary["retrieval"]["transferred_trained"]
    best = {row["model"]: [is_best for _, is_best, *_ in row["cells"]] for row in page.retrieval_rows(summary)}
    assert best.pop("merged") == best.pop("transferred, trained") == [True] * 4
    assert not any(any(row) for row in best.values())


def test_the_method_random_shows_its_single_chain_once_and_says_so(pages: dict[str, str]) -> None:
    summary = summary_of("random")
    assert list(summary["loss"]["embed"]) == ["random"]
    assert "random/embed" not in summary["seconds"]
    assert [row["model"] for row in page.retrieval_rows(summary)] == [
        "source model",
        "random, untrained",
        "random, pretrained",
        "random, trained",
        "merged",
    ]
    assert "They are shown once" in pages["random"]
    assert "They are shown once" not in pages["aligned"]


def test_user_input_is_escaped_in_the_page() -> None:
    summary = summary_of(source_model=EVIL, output=f"/tmp/{EVIL}") | {"method": EVIL, "paper": EVIL}
    read = Reader(page.render(summary, f"method: {EVIL}\n"))
    assert not [tag for tag, _ in read.tags if tag == "script"]
    assert len([tag for tag, _ in read.tags if tag == "img"]) == 7
    assert read.text.count(EVIL) >= 4


def test_equal_runs_make_equal_bytes_even_from_the_summary_on_disk(pages: dict[str, str]) -> None:
    assert page_of(json.loads(to_json(summary_of()))) == pages["aligned"]


def test_a_run_of_one_step_without_unknown_pieces_can_be_drawn() -> None:
    summary = summary_of()
    for losses in summary["loss"].values():
        losses |= {start: values[:1] for start, values in losses.items()}
    summary["bits_per_byte"] = {start: {"0": 4.1, "1": 4.1} for start in STARTS}
    summary["fertility"]["source"] = summary["fertility"]["target"]
    assert [figure.title for figure in figures(summary) if figure.name == "loss-embed"] == [
        "Contrastive loss in 1 step: 3.10 to 3.10 (random), 3.10 to 3.10 (transferred)"
    ]


def test_a_long_curve_is_reduced_to_means_and_keeps_its_average() -> None:
    steps, values = plots.thin([float(value) for value in range(1000)], most=250)
    assert (len(steps), values[0], values[-1]) == (250, 1.5, 997.5)
    assert steps == values
    assert plots.thin([3.0, 1.0]) == ([0.0, 1.0], [3.0, 1.0])


def test_labels_that_would_overlap_move_apart_and_keep_their_order() -> None:
    assert plots.space_out([2.0, 2.1], gap=0.5) == pytest.approx([1.8, 2.3])
    assert plots.space_out([2.1, 2.0], gap=0.5) == pytest.approx([2.3, 1.8])
    assert plots.space_out([1.0, 3.0], gap=0.5) == [1.0, 3.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.612, "0.6 s"), (59.4, "59.4 s"), (59.7, "1 min 00 s"), (3725, "1 h 02 min"), (185, "3 min 05 s")],
)
def test_durations_are_readable(value: float, expected: str) -> None:
    assert plots.duration(value) == expected


@pytest.fixture
def settings(tmp_path: Path) -> configs.ScionConfig:
    """A config whose inputs exist; nothing reads their content."""
    for name in ("text.txt", "pairs.txt", "test_pairs.txt"):
        (tmp_path / name).write_text(f"content of {name}\n")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    return configs.ScionConfig(
        text=str(tmp_path / "text.txt"),
        pairs=str(tmp_path / "pairs.txt"),
        test_pairs=str(tmp_path / "test_pairs.txt"),
        source_model=str(tmp_path / "source"),
        output=str(tmp_path / "out"),
        method="aligned",
        compare=CompareConfig(methods=("fvt",)),
    )


def finish(settings: configs.ScionConfig) -> None:
    """Every stage of a pipeline except the report, as if it had run."""
    held = metrics(settings.method)
    for name, stage in pipeline.stages(settings).items():
        if name != "report":
            with artifact.writing(stage.spec) as draft:
                draft.metrics = held[name]


def test_a_pipeline_reads_each_input_once_for_its_fingerprint(settings: configs.ScionConfig, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    read: list[str] = []
    digest = fingerprints.hashlib.file_digest
    monkeypatch.setattr(fingerprints, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(fingerprints.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    plans = [{name: stage.spec for name, stage in pipeline.stages(settings).items()} for _ in range(2)]
    assert plans[0] == plans[1]
    assert sorted(Path(path).name for path in read) == ["config.json", "pairs.txt", "test_pairs.txt", "text.txt"]


@pytest.mark.parametrize("method", ["aligned", "random"])
def test_the_job_writes_both_files_and_shows_the_numbers(settings: configs.ScionConfig, method: str) -> None:
    settings = replace(settings, method=method)
    finish(settings)
    console = Console(width=120, record=True, file=io.StringIO())
    job.main(settings, console)
    printed, out = console.export_text(), Path(settings.output)
    for words in ("anchor →", "MRR@10", "step 40", str(out / "report.html")):
        assert words in printed
    assert ("transferred, trained" in printed) == (method == "aligned")
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["config"]["method"] == summary["method"] == method
    assert [path.name for path in (out / "report").iterdir()] == ["artifact.json"]
    assert configs.load(str(out / "config.yaml"), []) == settings


def test_removed_pages_are_written_again(settings: configs.ScionConfig) -> None:
    finish(settings)
    console = Console(file=io.StringIO())
    job.main(settings, console)
    page_before = (Path(settings.output) / "report.html").read_bytes()
    (Path(settings.output) / "report.html").unlink()
    job.main(settings, console)
    assert (Path(settings.output) / "report.html").read_bytes() == page_before


def test_a_report_without_shards_names_the_job_that_makes_them(settings: configs.ScionConfig) -> None:
    finish(settings)
    shutil.rmtree(Path(settings.output) / "shards")
    with pytest.raises(ArtifactError, match=r"shards: the \w+ artefact does not exist\. Make it with `scion shard CONFIG`"):
        job.main(settings, Console(file=io.StringIO()))
    assert not (Path(settings.output) / "report.html").exists()


JOBS = {
    "shards": "shard",
    "transfer": "transfer",
    "pretrain": "pretrain",
    "embed": "embed",
    "merge": "merge",
    "evaluate": "evaluate",
}


@pytest.mark.parametrize("done", range(1, len(JOBS) + 1))
def test_a_report_covers_the_stages_that_are_finished(settings: configs.ScionConfig, done: int) -> None:
    """`scion shard`, `transfer`, `pretrain`, ... one by one, with `scion report` after each."""
    finish(settings)
    for name in ("random", "serve", *list(JOBS)[done:]):
        shutil.rmtree(Path(settings.output) / name)
    if done == len(JOBS):  # as `scion evaluate` makes it: of the models that are there
        shutil.rmtree(Path(settings.output) / "evaluate")
        with artifact.writing(evaluate.spec(settings, evaluate.finished_models(settings))) as draft:
            found = metrics("aligned")["evaluate"]
            draft.metrics = found | {"retrieval": {m: v for m, v in found["retrieval"].items() if "random" not in m}}
    console = Console(width=120, record=True, file=io.StringIO())
    job.main(settings, console)
    printed, read = console.export_text(), Reader((Path(settings.output) / "report.html").read_text())
    assert ("step 40" in printed) == (done > 2)
    assert ("MRR@10" in printed) == (done > 5)
    assert "random control" not in read.text.lower()
    assert "nan" not in read.text.lower().split()
    assert set(json.loads((Path(settings.output) / "summary.json").read_bytes())["seconds"]) == {
        {"shards": "shard"}.get(name, name) for name in list(JOBS)[:done]
    }


def test_a_stage_that_finishes_later_makes_a_new_report(settings: configs.ScionConfig) -> None:
    finish(settings)
    shutil.rmtree(Path(settings.output) / "evaluate")
    job.main(settings, Console(file=io.StringIO()))
    with artifact.writing(evaluate.spec(settings, evaluate.finished_models(settings))) as draft:
        draft.metrics = metrics("aligned")["evaluate"]
    console = Console(width=120, record=True, file=io.StringIO())
    job.main(settings, console)
    assert "transferred, trained" in console.export_text()


@pytest.mark.parametrize("control", [True, False])
def test_text_alone_ends_with_the_pretrained_model(settings: configs.ScionConfig, control: bool) -> None:
    settings = replace(settings, pairs=None, test_pairs=None, method="focus", control=control)
    ordered = pipeline.stages(settings)
    chain_of = ["transfer", *(["random/transfer"] if control else []), "pretrain", *(["random/pretrain"] if control else [])]
    assert list(ordered) == ["shard", *chain_of, "evaluate", "report"]
    held = metrics("focus")
    held["evaluate"] = {"bits_per_byte": {"transferred_pretrained": 2.271}}
    for name, stage in list(ordered.items())[:-1]:
        with artifact.writing(stage.spec) as draft:
            draft.metrics = held[name]
    console = Console(width=120, record=True, file=io.StringIO())
    job.main(settings, console)
    read = Reader((Path(settings.output) / "report.html").read_text())
    assert "step 40" in console.export_text()
    assert "Retrieval" not in read.text
    assert ("random control" in read.text) == control


def test_the_terminal_s_tables_by_language_fit_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(*map(job.score_table, page.language_tables(of_languages("el", "zh-Hant-TW", "tr"))), sep="\n")
    printed = console.file.getvalue()
    for cell in ("zh-Hant-TW", "6.41 → 1.87", "1,250", "4.217 → 2.371", "0.600 / 0.250", "none"):
        assert cell in printed
    assert "…" not in printed


def test_retrieval_in_training_is_drawn_if_it_was_measured_during_training() -> None:
    found = summary_of("aligned")
    assert found["retrieval_in_training"] == {}
    curve = {str(step): scores(0.02 * step + 0.1, 0.02 * step) for step in (0, 10, 20, 30)}
    (drawn,) = [figure for figure in figures(found | {"retrieval_in_training": {"random": curve}}) if "training" in figure.name]
    assert drawn.title == "Accuracy@1 while the embedder trains, both ways: 0.100 / 0.000 to 0.700 / 0.600 (random)"
    assert drawn.image.startswith("data:image/svg")


def test_the_page_says_that_settings_changed_during_training(pages: dict[str, str]) -> None:
    """The config alone does not reproduce such a run."""
    expected = "pretrain resumes at step 18 with steps 30 -> 40; earlier steps had the rates of the earlier settings"
    assert expected in " ".join(Reader(pages["aligned"]).text.split())
    assert "changed its settings during training" not in Reader(pages["random"]).text
