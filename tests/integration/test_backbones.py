"""A decoder becomes an embedder: pretrained with mntp, then trained with prompts, by the commands of a user."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import FAMILIES, tiny_decoder
from tests.integration.conftest import Chain, scion
from trainer.embedder import Embedder
from trainer.models.bidirectional import first_reads_last, is_bidirectional

pytestmark = pytest.mark.usefixtures("without_ray_train")


@pytest.fixture
def decoder(tmp_path: Path, english: list[str]) -> str:
    tokenizer = FAMILIES["byte_level"](english)
    tiny_decoder(tokenizer, "llama").save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


def run(chain: Chain, job: str, *overrides: str) -> str:
    process = scion(job, chain.config, *overrides)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_a_decoder_is_pretrained_with_mntp_and_embedded_with_prompts(copy: Chain, ray_session, decoder, pairs) -> None:
    from sentence_transformers import SentenceTransformer

    given = (f"source_model={decoder}", "method=fvt", "control=false", "pretrain.objective=mntp", "pretrain.probability=0.2")
    for job in ("shard", "transfer", "pretrain"):
        run(copy, job, *given)
    assert json.loads((copy.output / "pretrain" / "config.json").read_text())["is_causal"] is False
    prompts = "embed.prompts={query: 'find: ', document: 'text: '}"
    run(copy, "embed", *given, prompts, "embed.include_prompt=false", "embed.pooling=weightedmean")
    embedder = Embedder.load(str(copy.output / "embed"))
    assert is_bidirectional(embedder.model.config)
    assert first_reads_last(embedder.model)
    assert embedder.spec.prompts == {"query": "find: ", "document": "text: "}
    texts = [row["anchor"] for row in pairs[:10]]
    theirs = SentenceTransformer(str(copy.output / "embed"), device="cpu")
    for name in ("query", "document"):
        assert np.abs(theirs.encode(texts, prompt_name=name) - embedder.encode(texts, prompt_name=name)).max() < 1e-5
    # The last measurement of the training is what `evaluate` measures of the folder, prompts included.
    during = json.loads((copy.output / "embed" / "artifact.json").read_text())["metrics"]["retrieval"]["4"]
    run(copy, "evaluate", *given, prompts, "embed.include_prompt=false", "embed.pooling=weightedmean")
    after = json.loads((copy.output / "evaluate" / "artifact.json").read_text())["metrics"]
    found = next(scores for name, scores in after["retrieval"].items() if name.endswith("_trained"))
    assert found["forward"]["accuracy_at_1"] == pytest.approx(during["forward"]["accuracy_at_1"], abs=0.02)


def test_echo_and_a_bidirectional_decoder_are_trained(copy: Chain, ray_session, decoder, pairs) -> None:
    given = (f"embed.model={decoder}", "embed.bidirectional=true", "embed.template=echo", "embed.train.steps=2")
    run(copy, "embed", *given, "embed.pooling=mean")
    embedder = Embedder.load(str(copy.output / "embed"))
    assert embedder.spec.template == "{text} {text}"
    assert first_reads_last(embedder.model)
    refused = scion(
        "embed", copy.config, *given, "embed.prompts={query: '" + "word " * 60 + "'}", "output=" + str(copy.folder / "b")
    )
    assert refused.returncode == 2
    assert "prompt and template take" in refused.stdout + refused.stderr


def test_latent_attention_is_trained_with_partitioned_weights(copy: Chain, ray_session, decoder, pairs) -> None:
    given = (f"embed.model={decoder}", "embed.pooling=latentattention", "embed.latents=6", "embed.train.zero_stage=3")
    run(copy, "embed", *given, "embed.bidirectional=true", "embed.train.learning_rate=1e-2")
    embedder = Embedder.load(str(copy.output / "embed"))
    pooling = embedder.model.latent_pooling
    assert pooling.latents.shape == (6, 32)
    assert pooling.output.weight.abs().max() > 1e-3, "it begins at zero"
    during = json.loads((copy.output / "embed" / "artifact.json").read_text())["metrics"]["retrieval"]
    assert set(during) == {"0", "4"}
