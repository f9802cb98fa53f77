"""`scion embed embed.model=FOLDER`: a model that was never pretrained here becomes an embedder."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.conftest import tiny_decoder
from tests.integration.conftest import Chain, scion
from tests.unit.test_embedder_families import SIZE, tokenizer
from trainer.embedder import Embedder

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_decoder_without_padding_becomes_an_embedder(copy: Chain, english: list[str]) -> None:
    """Findings 6 of families.md: it hung in retries, after pretraining."""
    folder = copy.folder / "decoder"
    made = tokenizer(english, SIZE)
    tiny_decoder(made, "gpt2").save_pretrained(folder)
    made.save_pretrained(folder)
    done = scion("embed", copy.config, f"embed.model={folder}", "embed.pooling=last", "workers=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in copy.output.iterdir()} == {"embed"}
    vectors = Embedder.load(str(copy.output / "embed")).encode(english[:20])
    theirs = SentenceTransformer(str(copy.output / "embed"), device="cpu").encode(english[:20])
    assert np.abs(vectors - theirs).max() < 1e-5
    facts = json.loads((copy.output / "embed" / "embed.json").read_text())
    assert facts["pooling"] == "lasttoken"
    assert copy.artifact("embed")["metrics"]["weights"]["made_from"] == "the optimizer's fp32 weights"
    assert scion("embed", copy.config, f"embed.model={folder}", "embed.pooling=last", "workers=1").stdout.count("kept") == 1
