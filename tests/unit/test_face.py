"""`import scion`: the public names, how light they are, and a transfer without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scion
from data_pipeline.tokenizers.train import TokenizerConfig
from tests.unit.jobs.test_start import HEAVY

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "CheckResult", "Embedder", "EmbedderSpec", "GraftedModel", "Run", "ScionError", "TokenizerConfig", "TransferPlan",
    "__version__", "methods", "run", "transfer", "verify",
}  # fmt: skip
"""Adding a name is a decision: it stands here, in `__all__` and in the changelog."""


def test_the_public_names_are_these_and_each_can_be_imported() -> None:
    assert set(scion.__all__) == PUBLIC
    assert scion.__all__ == sorted(scion.__all__, key=str.swapcase) or scion.__all__ == sorted(scion.__all__)
    assert dir(scion) == sorted(scion.__all__)
    for name in scion.__all__:
        assert getattr(scion, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        scion.nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert f'version = "{scion.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## [{scion.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_import_and_the_list_of_methods_need_nothing_heavy() -> None:
    code = f"import sys, json, scion\nscion.methods()\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []


@pytest.fixture(scope="module")
def grafted(source_folder: str, greek: list[str]) -> scion.GraftedModel:
    return scion.transfer(source_folder, text=greek, method="fvt", tokenizer=TokenizerConfig(vocab_size=600))


def test_a_transfer_is_right_and_the_same_again(grafted: scion.GraftedModel, source_folder: str, greek: list[str]) -> None:
    assert all(check.is_ok for check in scion.verify(grafted))
    again = scion.transfer(source_folder, text=greek, method="fvt", tokenizer=TokenizerConfig(vocab_size=600))
    assert again.tokenizer.get_vocab() == grafted.tokenizer.get_vocab()
    assert np.array_equal(again.plan.weights, grafted.plan.weights)


def test_what_is_saved_is_loaded_by_everybody(grafted: scion.GraftedModel, source_folder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = str(tmp_path / "grafted")
    grafted.save(folder)
    assert len(AutoModelForMaskedLM.from_pretrained(folder).get_input_embeddings().weight) % 128 == 0
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == grafted.tokenizer.get_vocab()
    assert scion.Embedder.load(folder).encode(["Πατήστε το κουμπί."]).shape == (1, 32)
    assert all(check.is_ok for check in scion.verify(folder, source_model=source_folder))


def test_pairs_text_files_and_a_given_tokenizer(grafted: scion.GraftedModel, source_folder: str, pairs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    grafted.save(str(tmp_path / "given"))
    (tmp_path / "text.txt").write_text("\n".join(pair["positive"] for pair in pairs))
    made = scion.transfer(
        source_folder, text=str(tmp_path / "*.txt"), pairs=[(pair["anchor"], pair["positive"]) for pair in pairs],
        method="aligned+fvt", tokenizer=str(tmp_path / "given"),
    )  # fmt: skip
    assert set(made.plan.placed_by_method()) == {"aligned", "fvt"}
    assert made.tokenizer.get_vocab() == grafted.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ["text"], "method": "focuss"}, "focuss is not a method"),
        ({"text": []}, "there is no text in it"),
        ({"text": "/nowhere/*.parquet"}, "no such file"),
        ({"text": ["text"], "tokenizer": "/nowhere/tokenizer"}, "neither a folder nor a model"),
        ({"text": ["text in Greek"], "method": "aligned"}, "pairs"),
    ],
)
def test_a_mistake_says_what_to_do(source_folder: str, given: dict, message: str) -> None:
    with pytest.raises(scion.ScionError, match=message):
        scion.transfer(source_folder, **given)


def test_a_model_that_was_changed_is_not_right(grafted: scion.GraftedModel) -> None:
    import copy

    import torch

    broken = scion.GraftedModel(copy.deepcopy(grafted.model), grafted.tokenizer, grafted.plan, grafted.source_model)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[7] += 1
    with pytest.raises(scion.ScionError, match="checks failed"):
        scion.verify(broken)


def test_a_job_that_never_ends_is_no_call() -> None:
    with pytest.raises(scion.ScionError, match="a server never ends"):
        scion.run("conf.yaml", job="serve")
