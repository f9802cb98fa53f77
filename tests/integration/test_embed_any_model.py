"""`scion embed embed.model=FOLDER` makes an embedder of a model that Scion never pretrained."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer

from data_pipeline.pairs import text_pairs as pairs
from ray_jobs import status
from tests.conftest import tiny_decoder
from tests.integration.conftest import Chain, scion
from tests.unit.test_embedder_families import SIZE, tokenizer
from trainer.embedder import Embedder
from trainer.evaluation import retrieval

pytestmark = pytest.mark.usefixtures("ray_session", "without_ray_train")


def test_a_decoder_without_padding_becomes_an_embedder(copy: Chain, english: list[str]) -> None:
    """Finding 6 of families.md: the job hung in retries after pretraining."""
    folder = copy.folder / "decoder"
    gpt2_tokenizer = tokenizer(english, SIZE)
    tiny_decoder(gpt2_tokenizer, "gpt2").save_pretrained(folder)
    gpt2_tokenizer.save_pretrained(folder)
    command = ("embed", copy.config, f"embed.model={folder}", "embed.pooling=last", "workers=1")
    process = scion(*command, "embed.train.evaluate_steps=2", "embed.train.export_steps=2")
    assert process.returncode == 0, process.stdout + process.stderr
    assert {path.name for path in copy.output.iterdir()} == {"embed", "embed-step-2", "embed-step-4"}
    assert SentenceTransformer(str(copy.output / "embed-step-2"), device="cpu").encode(english[:2]).shape[0] == 2
    testing = pairs.load(str(copy.folder / "test_pairs.parquet"), str(copy.folder / "cache"), key="test_pairs")
    scores = copy.artifact("embed")["metrics"]["retrieval"]
    assert set(scores) == {"0", "2", "4"}
    for step, name in (("2", "embed-step-2"), ("4", "embed")):
        assert scores[step] == retrieval.Retrieval()(Embedder.load(str(copy.output / name)), testing).scores
    last = " / ".join(f"{scores['4'][way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))
    assert f"to {last} on test pairs" in process.stdout
    console = Console(file=io.StringIO(), width=120)
    status.command([str(copy.output / "embed")], console)
    assert f"accuracy@1 {last} on 60 test pairs at step 4" in console.file.getvalue()  # type: ignore[attr-defined]
    vectors = Embedder.load(str(copy.output / "embed")).encode(english[:20])
    theirs = SentenceTransformer(str(copy.output / "embed"), device="cpu").encode(english[:20])
    assert np.abs(vectors - theirs).max() < 1e-5
    integers = Embedder.load(str(copy.output / "embed")).encode(english[:20], output_dtype="uint8")
    assert np.unique(integers).size > 100  # the ranges are those of its own vectors
    facts = json.loads((copy.output / "embed" / "embed.json").read_text())
    assert facts["pooling"] == "lasttoken"
    assert copy.artifact("embed")["metrics"]["weights"]["made_from"] == "the optimizer's fp32 weights"
    assert scion(*command).stdout.count("kept") == 1
    evaluated = scion("evaluate", *command[1:], f"evaluate.models.before={folder}")
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert f"model, trained: accuracy@1 {last.replace(' /', ' anchor → positive,')} positive → anchor" in evaluated.stdout
    found = copy.artifact("evaluate")["metrics"]["retrieval"]
    assert set(found) == {"source_model", "model_trained", "before"}
    assert found["source_model"] == found["before"]
    assert found["model_trained"] == scores["4"]
    reported = scion("report", *command[1:], f"evaluate.models.before={folder}")
    assert reported.returncode == 0, reported.stdout + reported.stderr
    assert "An embedder and its training" in (copy.output / "report.html").read_text()
    assert scion("embed", str(copy.output / "config.yaml")).stdout.count("kept") == 1
