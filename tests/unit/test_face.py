"""`import scion`: the public names, how light they are, and a transfer without Ray."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scion
from data_pipeline.tokenizers.train import TokenizerConfig
from tests.conftest import byte_level, tiny_decoder
from tests.unit.jobs.test_start import HEAVY
from trainer.transfer.methods import METHODS

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "CheckResult",
    "Embedder",
    "EmbedderSpec",
    "GraftedModel",
    "Provenance",
    "Run",
    "ScionError",
    "TokenizerConfig",
    "TransferPlan",
    "__version__",
    "methods",
    "mteb_encoder",
    "run",
    "transfer",
    "verify",
}
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
def graft(source_folder: str, greek: list[str]) -> scion.GraftedModel:
    return scion.transfer(source_folder, text=greek, method="fvt", tokenizer=TokenizerConfig(vocab_size=600))


def test_a_transfer_is_right_and_the_same_again(graft: scion.GraftedModel, source_folder: str, greek: list[str]) -> None:
    assert all(check.is_ok for check in scion.verify(graft))
    again = scion.transfer(source_folder, text=greek, method="fvt", tokenizer=TokenizerConfig(vocab_size=600))
    assert again.tokenizer.get_vocab() == graft.tokenizer.get_vocab()
    assert np.array_equal(again.plan.weights, graft.plan.weights)


def test_a_saved_model_is_loaded_by_other_libraries(graft: scion.GraftedModel, source_folder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = str(tmp_path / "grafted")
    graft.save(folder)
    assert len(AutoModelForMaskedLM.from_pretrained(folder).get_input_embeddings().weight) % 128 == 0
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == graft.tokenizer.get_vocab()
    assert scion.Embedder.load(folder).encode(["Πατήστε το κουμπί."]).shape == (1, 32)
    assert all(check.is_ok for check in scion.verify(folder))


def test_pairs_text_files_and_a_given_tokenizer(graft: scion.GraftedModel, source_folder: str, pairs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    graft.save(str(tmp_path / "given"))
    (tmp_path / "text.txt").write_text("\n".join(pair["positive"] for pair in pairs))
    grafted_again = scion.transfer(
        source_folder,
        text=str(tmp_path / "*.txt"),
        pairs=[(pair["anchor"], pair["positive"]) for pair in pairs],
        method="aligned+fvt",
        tokenizer=str(tmp_path / "given"),
    )
    assert set(grafted_again.plan.placed_by_method()) == {"aligned", "fvt"}
    assert grafted_again.tokenizer.get_vocab() == graft.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ["text"], "method": "focuss"}, "focuss is not a method"),
        ({"text": []}, "there is no text in it"),
        ({"text": "/nowhere/*.parquet"}, "no such file"),
        ({"text": ["text"], "tokenizer": "/nowhere/tokenizer"}, "there is no such folder"),
        ({"text": ["text in Greek"], "method": "aligned"}, "pairs"),
        ({"text": ["text in Greek"], "method": "aligned", "pairs": []}, "pairs"),
        ({"text": ["text in Greek"], "method": "aligned", "pairs": [("a", 1)]}, "expected two texts"),
        ({"text": ["text in Greek"], "method": "aligned", "pairs": ["ab"]}, "expected two texts"),
        ({"text": [b"text"]}, "expected texts, got bytes"),
        ({"text": ["text"], "method": ["focsu"]}, "Did you mean focus"),
        ({"text": None}, "text: expected texts, got NoneType"),
        ({"text": [__file__]}, "is the name of a file"),
        ({"text": ["text"], "method": "fvt", "settings": {"focus": {}}}, "focus is not in the chain fvt"),
        ({"text": ["text"], "settings": {"focus": {"dim": 3}}}, "there is no key 'dim'"),
        ({"text": ["text"], "settings": {"focus": 1}}, "expected a dict or FocusConfig, got int"),
        ({"text": ["text"], "seed": -1}, "at least 0"),
        ({"text": ["text"], "seed": 1.5}, "expected a whole number"),
        ({"text": ["text"], "source_model": 3}, "expected a folder or a name"),
        ({"text": ["text"], "source_model": "./nowhere"}, "there is no such folder"),
        ({"text": ["text"], "tokenizer": 500}, "expected a tokenizer, got int"),
        ({"text": ["many words " * 50]}, "set its vocab_size|Give more text"),
    ],
)
def test_a_mistake_says_what_to_do(source_folder: str, given: dict, message: str) -> None:
    with pytest.raises(scion.ScionError, match=message):
        scion.transfer(**{"source_model": source_folder} | given)


def test_a_model_with_a_given_tokenizer_is_right(tmp_path: Path, source_folder: str, greek: list[str]) -> None:
    tokenizer = byte_level(greek)
    tokenizer.save_pretrained(tmp_path / "given")
    model = scion.transfer(source_folder, text=greek, method="fvt", tokenizer=tmp_path / "given")
    assert all(check.is_ok for check in scion.verify(model))
    model.save(tmp_path / "grafted")
    assert all(check.is_ok for check in scion.verify(tmp_path / "grafted"))
    again = scion.transfer(source_folder, text=greek, method="fvt", tokenizer=tokenizer)
    assert np.array_equal(again.plan.provenance, model.plan.provenance)
    assert scion.Embedder.load(tmp_path / "grafted").encode(["κουμπί"]).shape == (1, 32)


def test_paths_are_taken_as_paths(source_folder: str, greek: list[str], pairs: list[dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(greek))
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model = scion.transfer(
        Path(source_folder),
        text=tmp_path / "text.txt",
        pairs=tmp_path / "pairs.jsonl",
        method="aligned+fvt",
        tokenizer=TokenizerConfig(vocab_size=600),
    )
    assert set(model.plan.placed_by_method()) == {"aligned", "fvt"}


def test_pairs_may_be_rows_or_a_generator(source_folder: str, greek: list[str], pairs: list[dict[str, str]]) -> None:
    def placed(given: Iterable[Any]) -> dict[str, int]:
        small = TokenizerConfig(vocab_size=600)
        return scion.transfer(
            source_folder, text=greek, pairs=given, method="aligned+fvt", tokenizer=small
        ).plan.placed_by_method()

    tuples = [(pair["anchor"], pair["positive"]) for pair in pairs]
    wanted = placed(tuples)
    assert wanted["aligned"] > 50
    assert placed(pairs) == placed(iter(tuples)) == placed([*tuples, ("", "κενό")]) == wanted


def test_settings_may_be_a_mapping(source_folder: str, greek: list[str], pairs: list[dict[str, str]]) -> None:
    def weights(settings: Any) -> Any:
        return scion.transfer(
            source_folder,
            text=greek,
            pairs=[(pair["anchor"], pair["positive"]) for pair in pairs],
            method="aligned+fvt",
            tokenizer=TokenizerConfig(vocab_size=600),
            settings=settings,
        ).plan.weights

    fewer = weights({"aligned": {"top": 1}})
    assert np.array_equal(fewer, weights({"aligned": METHODS["aligned"].config(top=1)}))
    assert not np.array_equal(fewer, weights(None))


def test_values_of_keys_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch, source_folder: str, tmp_path: Path) -> None:
    monkeypatch.setattr("ray_jobs.run.run_job", lambda *arguments: None)
    (tmp_path / "text.txt").write_text("κείμενο")
    named = {"text": tmp_path / "text.txt", "source_model": Path(source_folder), "output": tmp_path / "😀 \u0085 #: x"}
    done = scion.run(None, "seed=1", seed=np.int64(3), job="shard", shard={"length": np.int32(64)}, **named)
    config = done.config
    assert (config.output, config.seed, config.shard.length) == (str(named["output"]), 3, 64)
    with pytest.raises(scion.ScionError, match=r"shard\.length: expected text, a number, a list or a dict, got object"):
        scion.run(job="shard", shard={"length": object()}, **named)
    with pytest.raises(scion.ScionError, match=r"Did you mean shard\.length"):
        scion.run(job="shard", shard={"lenght": 64}, **named)


@pytest.mark.parametrize("job", ["shrad", "verify", ""])
def test_an_unknown_job_is_named(job: str) -> None:
    with pytest.raises(scion.ScionError, match="is not a job"):
        scion.run(job=job)


def test_a_list_may_name_files_and_methods(source_folder: str, greek: list[str], tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("\n".join(greek[number::2]))
    small = TokenizerConfig(vocab_size=600)
    model = scion.transfer(
        source_folder, text=[tmp_path / "0.txt", tmp_path / "1.txt"], method=["fvt", "focus"], tokenizer=small
    )
    assert model.plan.method == "fvt+focus"
    assert len(model.tokenizer) == 600


def test_an_embedder_encodes_lists(source_folder: str) -> None:
    embedder = scion.Embedder.load(source_folder)
    for wrong in ("word", [None]):
        with pytest.raises(scion.ScionError, match="expected a list of texts"):
            embedder.encode(wrong)


def test_a_plan_is_loaded_and_read_row_by_row(graft: scion.GraftedModel, tmp_path: Path) -> None:
    graft.plan.save(str(tmp_path))
    plan = scion.TransferPlan.load(tmp_path)
    assert plan.source_model == graft.plan.source_model
    dense = plan.dense().numpy()
    for token in (0, len(plan) // 2, len(plan) - 1):
        row = np.zeros(plan.source_rows, np.float32)
        for source, weight in plan.row(token):
            row[source] += weight
        assert np.array_equal(row, dense[token])
    assert scion.Provenance(plan.provenance[plan.copies()[0]]).name.lower() in plan.fates()


def test_a_method_that_places_little_says_so(source_folder: str, greek: list[str], tmp_path: Path) -> None:
    warnings = list[str]()
    useless = [("a b", "c d")] * 20
    size = TokenizerConfig(vocab_size=600)
    scion.transfer(source_folder, text=greek, pairs=useless, method="aligned", tokenizer=size, warn=warnings.append)
    assert any("the others start at random" in line for line in warnings)
    scion.transfer(source_folder, text=greek, method="random", tokenizer=size, warn=(quiet := list[str]()).append)
    assert not any("at random" in line for line in quiet)


def test_another_architecture_is_no_source(graft: scion.GraftedModel, tmp_path: Path, greek: list[str]) -> None:
    tokenizer = byte_level(greek)
    tiny_decoder(tokenizer).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    with pytest.raises(scion.ScionError, match=r"the source is a .*, the grafted model a "):
        scion.verify(graft, source_model=tmp_path / "decoder")
    with pytest.raises(scion.ScionError, match="expected a grafted model or a folder, got NoneType"):
        scion.verify(None)  # type: ignore[arg-type]


def test_an_object_is_shown_in_a_line(graft: scion.GraftedModel, source_folder: str) -> None:
    for one in (graft, graft.plan, scion.Embedder.load(source_folder)):
        assert len(repr(one)) < 300


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(scion.ScionError, match=r"pooling 'maximum' is not known. Choose one of: "):
        scion.EmbedderSpec(pooling="maximum")


def test_a_model_that_was_changed_is_not_right(graft: scion.GraftedModel) -> None:
    import copy

    import torch

    broken = scion.GraftedModel(copy.deepcopy(graft.model), graft.tokenizer, graft.plan)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[7] += 1
    with pytest.raises(scion.ScionError, match=r"checks failed: copied rows .*row 7|checks failed: .*7"):
        scion.verify(broken)


def test_a_job_that_never_ends_is_no_call() -> None:
    with pytest.raises(scion.ScionError, match="a server never ends"):
        scion.run("conf.yaml", job="serve")
