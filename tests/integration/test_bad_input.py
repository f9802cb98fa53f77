"""Mistakes of users: exit code 2, one line with the error, its place and the fix, and no half-written files."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import Chain, scion, scion_process, write_rows

PAIR = {"id": "x", "anchor": "Click the button.", "positive": "Πατήστε το κουμπί."}


def refusal(*arguments: str) -> str:
    """Runs a command that must fail, and returns its message."""
    process = scion(*arguments)
    assert process.returncode == 2
    message = process.stderr
    assert "Traceback" not in message
    assert message.startswith("error:")
    return message


def nothing_left(chain: Chain) -> bool:
    return not [path for path in chain.output.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("ray_session")
class TestText:
    def test_an_empty_corpus_is_refused(self, copy: Chain) -> None:
        path = write_rows(copy.folder / "empty.parquet", [{"text": "  "}, {"text": "\u200b\n"}])
        message = refusal("pipeline", copy.config, f"text={path}")
        assert "no document is left to train on" in message
        assert "2 empty" in message
        assert nothing_left(copy)

    def test_a_missing_column_is_named(self, copy: Chain) -> None:
        path = write_rows(copy.folder / "odd.parquet", [{"body": "text"}])
        message = refusal("shard", copy.config, f"text={path}")
        assert "column text is missing; the file has body" in message
        assert nothing_left(copy)

    def test_a_missing_pair_column_is_named(self, copy: Chain) -> None:
        path = write_rows(copy.folder / "odd.parquet", [{"anchor": "a", "negative": "b"}])
        assert "column positive is missing" in refusal("shard", copy.config, f"pairs={path}")

    def test_a_broken_line_is_named(self, copy: Chain) -> None:
        path = copy.folder / "bad.jsonl"
        path.write_text('{"text": "one"}\n{"text": "two"\n')
        message = refusal("shard", copy.config, f"text={path}")
        assert "line 2 is not JSON that can be read (Expecting ',' delimiter at its character 15)" in message
        assert "bad.jsonl" in message

    def test_a_missing_file_or_dataset_is_refused(self, copy: Chain) -> None:
        assert "no such file" in refusal("shard", copy.config, f"text={copy.folder}/none-*.parquet")
        assert "neither a file nor a dataset" in refusal("shard", copy.config, "text=no/such")

    def test_pairs_from_the_test_set_are_refused(self, copy: Chain) -> None:
        message = refusal("pipeline", copy.config, f"test_pairs={copy.folder}/pairs.parquet")
        assert "240 of 240 ids are also in pairs=" in message
        same = [row | {"id": f"new{i}"} for i, row in enumerate(pq.read_table(copy.folder / "pairs.parquet").to_pylist())]
        path = write_rows(copy.folder / "renamed.parquet", same)
        assert "a sentence of test_pairs= stands in 240 of 240 pairs" in refusal("pipeline", copy.config, f"test_pairs={path}")
        assert nothing_left(copy)

    def test_a_repeated_id_is_refused(self, copy: Chain) -> None:
        path = write_rows(copy.folder / "twice.parquet", [PAIR, PAIR])
        assert "'x' occurs more than once" in refusal("shard", copy.config, f"pairs={path}")

    def test_a_model_folder_without_a_tokenizer_is_refused(self, copy: Chain, source_folder: str) -> None:
        folder = copy.folder / "model"
        shutil.copytree(source_folder, folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        message = refusal("pipeline", copy.config, f"source_model={folder}")
        assert "the folder has no tokenizer" in message
        assert nothing_left(copy)

    def test_a_job_without_its_input_names_the_job_before_it(self, copy: Chain) -> None:
        assert "scion shard" in refusal("pretrain", copy.config)


class TestConfiguration:
    def test_an_unknown_key_names_the_nearest(self, copy: Chain) -> None:
        assert "Did you mean method?" in refusal("pipeline", copy.config, "metod=focus")
        assert "Did you mean shard.tokenizer.vocab_size?" in refusal("pipeline", copy.config, "shard.tokenizer.vocab_siz=5")

    def test_an_unknown_method_names_them_all(self, copy: Chain) -> None:
        message = refusal("pipeline", copy.config, "method=foucs")
        assert "random, mean, script_moments, fvt, wechsel, ofa, focus" in message

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("pretrain.train.zero_stage=4", "zero_stage must be 1, 2 or 3"),
            ("shard.heldout=2", "between 0 and 1"),
            ("pretrain.train.steps=many", "steps"),
            ("workers=0", "above 0"),
            ("output", "is not key=value"),
            ("transfer.match=[exact,casse]", "'casse' is not a comparison"),
            ("transfer.max_memory=0", "above 0 GiB"),
            ("transfer.plan=/nowhere", "there is no plan"),
        ],
    )
    def test_a_bad_value_is_refused(self, copy: Chain, override: str, message: str, ray_session: None) -> None:
        assert message in refusal("pipeline", copy.config, override)

    def test_a_missing_file_job_or_model_is_refused(self, copy: Chain) -> None:
        assert "no such file" in refusal("pipeline", "nowhere.yaml")
        assert "Did you mean 'transfer'" in refusal("tansfer", copy.config)
        assert "no such folder" in refusal("pipeline", copy.config, "source_model=/nowhere")
        assert "configuration file is missing" in refusal("pipeline")

    def test_missing_keys_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("text: a.parquet\n")
        assert "source_model, output must be given" in refusal("pipeline", str(tmp_path / "c.yaml"))


@pytest.mark.usefixtures("ray_session")
def test_inputs_that_a_method_cannot_use_are_refused(copy: Chain) -> None:
    """All cases share one chain: the first makes the shards, the others reuse them, and none leaves a model."""
    for name, words in (("s.vec", ("file 1 0 0", "open 0 1 0")), ("t.vec", ("αρχείο 1 0", "άνοιγμα 0 1"))):
        (copy.folder / name).write_text("\n".join(words) + "\n")
    (copy.folder / "useless.tsv").write_text("xyzzy\tplugh\n")
    (copy.folder / "good.tsv").write_text("file\tαρχείο\n")
    space, vectors = (
        "transfer.methods.wechsel.space",
        [f"{side}_vectors={copy.folder}/{side[0]}.vec" for side in ("source", "target")],
    )
    vector_settings = [f"{space}.{item}" for item in vectors]
    cases: list[tuple[list[str], str]] = [
        (["method=omp"], "omp needs a donor"),
        (["method=clp", "transfer.methods.clp.donor=/nowhere"], "no such folder"),
        (["method=wechsel", f"{space}.dictionary={copy.folder}/useless.tsv"], "none of its 1 pairs"),
        (["method=wechsel", f"{space}.dictionary=/nowhere.tsv"], "no such file"),
        (["method=wechsel", *vector_settings, f"{space}.dictionary={copy.folder}/good.tsv"], "cannot align (1, 3) with (1, 2)"),
        (["method=ofa", "transfer.methods.ofa.space.target_vectors=/nowhere.bin"], "no such file"),
        (["method=wechsel", "transfer.max_memory=0.01"], "GiB are needed"),
        (["method=fvt", "transfer.factorise.rank=33"], "no factors of rank 33"),
        (["method=fvt", "transfer.factorise.rank=32", "transfer.factorise.keep=true"], "no smaller than the matrix"),
    ]
    for arguments, message in cases:
        assert message in refusal("transfer", copy.config, *arguments), arguments
    assert {path.name for path in copy.output.iterdir()} == {"shards"}


def test_the_output_folder_of_another_configuration_is_refused(finished_chain: Chain) -> None:
    message = refusal("pipeline", finished_chain.config, "shard.length=64")
    assert "another run; it differs in shard.length (32 -> 64)" in message
    assert "Use the settings it was made with, or choose another output=" in message


def test_a_foreign_folder_is_refused_and_left_alone(copy: Chain) -> None:
    (copy.output / "shards").mkdir(parents=True)
    (copy.output / "shards" / "thesis.tex").write_text("years of work")
    assert "not Scion's" in refusal("pipeline", copy.config)
    assert (copy.output / "shards" / "thesis.tex").read_text() == "years of work"


def test_an_unreachable_cluster_is_named(copy: Chain) -> None:
    process = scion_process("shard", copy.config, address="127.0.0.1:1")
    assert process.returncode == 2, process.stderr
    assert "RAY_ADDRESS=127.0.0.1:1" in process.stderr
