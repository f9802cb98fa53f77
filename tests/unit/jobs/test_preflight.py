"""Mistakes that used to be found after hours, refused before Ray starts."""

import subprocess
import sys
from typing import Any

import pytest
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from data_pipeline.errors import ConfigError, ModelError
from ray_jobs import preflight
from ray_jobs.cli import main
from ray_jobs.config import load as configs


@pytest.fixture
def path(tmp_path: Any, source_folder: str) -> str:
    text = f"text: t\npairs: p\ntest_pairs: q\nsource_model: {source_folder}\noutput: {tmp_path}/run\nshard: {{length: 64}}\n"
    (tmp_path / "a.yaml").write_text(text)
    return str(tmp_path / "a.yaml")


@pytest.fixture
def decoder(tmp_path: Any) -> str:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=100)).save_pretrained(
        tmp_path / "gpt2"
    )
    return str(tmp_path / "gpt2")


REFUSED = {
    "rows longer than the positions": ("pipeline", ["shard.length=131"], r"shard\.length.*131 tokens.*reach 130"),
    "of any job that packs": ("transfer", ["shard.length=200"], r"200 tokens"),
    "texts longer than the positions": ("embed", ["embed.max_length=131"], r"embed\.max_length.*reach 130"),
    "omp without a donor": ("pipeline", ["method=omp"], r"methods\.omp\.donor: omp needs a donor"),
    "in a chain": ("transfer", ["method=[aligned,clp_plus]"], r"methods\.clp_plus\.donor"),
    "in a comparison": ("compare", ["compare.methods=[fvt,[aligned,clp]]"], r"methods\.clp\.donor"),
    "a donor that is not there": ("transfer", ["method=omp", "transfer.methods.omp.donor=/no/where"], "no such folder"),
    "vectors that are not there": (
        "pipeline",
        ["method=focus", "transfer.methods.focus.vectors=/no/cc.el.300.bin"],
        r"focus\.vectors=/no.*no such file",
    ),
    "a dictionary that is not there": (
        "transfer",
        ["method=wechsel", "transfer.methods.wechsel.space.dictionary=/no/el.tsv"],
        r"space\.dictionary=/no",
    ),
    "a model for embed that the pipeline would pass over": ("pipeline", ["embed.model=/some"], r"embed\.model.*pretrained"),
    "a source that is not there": ("pipeline", ["source_model=/no/where"], r"source_model=/no/where.*no such folder"),
    "a method of pairs without any": ("transfer", ["pairs=null", "method=[focus,ramen]"], "pairs: ramen learns from"),
    "vectors without a dictionary, and no pairs": (
        "transfer",
        ["pairs=null", "method=wechsel", "transfer.methods.wechsel.space.source_vectors={a}"],
        "wechsel learns",
    ),
    "a given model, and no pairs": ("embed", ["pairs=null", "embed.model={source}"], "pairs: a given model learns"),
    "what is to be frozen and is not there": (
        "pipeline",
        ["pretrain.train.frozen=[encoder]"],
        r"pretrain\.train\.frozen: 'encoder' fits no parameter. They are named as bert\.encoder\.layer\.",
    ),
    "what the embedder is to freeze and is not there": (
        "pipeline",
        ["embed.train.frozen=[nothing.like.this]"],
        r"embed\.train\.frozen: 'nothing\.like\.this' fits no",
    ),
    "an embedder of which all is frozen": ("embed", ["embed.train.frozen=[body,embeddings]"], r"embed\.train\.frozen"),
    "text at storage that is not known": ("shard", ["text=foo://b/x.txt"], r"foo://b/x\.txt: this kind of storage is not"),
    "a model for embed that is not there": ("embed", ["embed.model=/some"], "embed.model=/some: no such folder"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_mistake_is_refused_before_ray_starts(path: str, name: str, monkeypatch, capsys) -> None:
    job, overrides, message = REFUSED[name]
    folder = configs.load(path, []).source_model
    overrides = [override.format(a=path, source=folder) for override in overrides]
    with pytest.raises(ConfigError, match=message):
        preflight.check(configs.load(path, overrides), job)
    monkeypatch.setattr("cluster.session.ray_session", lambda **settings: pytest.fail("Ray was started"))
    assert main([job, path, *overrides]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("key", "spec"), [("text", "no/file.txt"), ("pairs", "no-*.jsonl"), ("source_model", "/no/model")])
def test_a_misspelt_file_is_refused_before_torch_is_imported(path: str, key: str, spec: str) -> None:
    code = "import sys; from ray_jobs.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    done = subprocess.run([sys.executable, "-c", code, "pipeline", path, f"{key}={spec}"], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "2"]
    assert f"{key}={spec}: no such f" in done.stderr


def test_inputs_that_a_job_does_not_read_may_be_elsewhere(path: str) -> None:
    preflight.check(configs.load(path, ["text=no.txt"]), "serve")
    preflight.check(configs.load(path, ["text=no.txt"]), "merge")


def test_widths_and_exits_are_parts_of_the_model(path: str) -> None:
    preflight.check(configs.load(path, ["embed.nested.widths=[16, 8]", "embed.nested.exits=[1]"]), "embed")
    with pytest.raises(
        ConfigError, match=r"embed.nested.widths: the model's vectors have \d+ values, so that a width of 4096 is not"
    ):
        preflight.check(configs.load(path, ["embed.nested.widths=[4096]"]), "embed")
    with pytest.raises(ModelError, match=r"it has 2 layers, so that there is no exit behind layer 2"):
        preflight.check(configs.load(path, ["embed.nested.exits=[2]"]), "embed")


def test_poolings_are_checked_against_the_model(path: str, decoder: str) -> None:
    with pytest.raises(ConfigError, match="pooling 'median' is not known"):
        configs.load(path, ["embed.pooling=median"])
    given = [f"source_model={decoder}", "embed.max_length=64"]
    with pytest.raises(ConfigError, match="first token sees no other"):
        preflight.check(configs.load(path, [*given, "embed.pooling=cls"]), "embed")
    preflight.check(configs.load(path, [*given, "embed.pooling=last"]), "embed")
    preflight.check(configs.load(path, ["embed.pooling=cls"]), "embed")
    preflight.check(configs.load(path, [*given, "embed.pooling=cls", "embed.bidirectional=true"]), "embed")
    with pytest.raises(ConfigError, match="prompteol answers in its last token"):
        configs.load(path, ["embed.template=prompteol"])


def test_a_decoder_that_cannot_be_made_bidirectional_is_refused(path: str, tmp_path: Any) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
    GPTNeoForCausalLM(GPTNeoConfig(**sizes)).save_pretrained(tmp_path / "neo")
    given = [f"source_model={tmp_path}/neo", "embed.max_length=64"]
    preflight.check(configs.load(path, given), "embed")
    with pytest.raises(ModelError, match="gpt_neo cannot be made bidirectional"):
        preflight.check(configs.load(path, [*given, "embed.bidirectional=true"]), "embed")


def test_settings_that_a_job_does_not_use_are_not_checked(path: str, tmp_path: Any) -> None:
    preflight.check(configs.load(path, ["method=omp", "embed.max_length=500"]), "shard")
    T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    preflight.check(configs.load(path, [f"source_model={tmp_path}/t5", "shard.length=4096"]), "shard")


def test_an_encoder_decoder_is_refused_before_its_transfer_where_it_would_be_pretrained(path: str, tmp_path: Any) -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    model.save_pretrained(tmp_path / "t5")
    given = configs.load(path, [f"source_model={tmp_path}/t5"])
    for job in ("pipeline", "pretrain", "compare"):
        with pytest.raises(ModelError, match="not pretrained here"):
            preflight.check(given, job)
    preflight.check(given, "transfer")
    preflight.check(configs.load(path, [f"embed.model={tmp_path}/t5"]), "embed")


@pytest.mark.parametrize(
    ("job", "key", "message"),
    [("pipeline", "source_model", "vit is no language model"), ("embed", "embed.model", "vit has no vocabulary")],
)
def test_a_model_that_reads_no_text_is_refused(path: str, tmp_path: Any, job: str, key: str, message: str) -> None:
    ViTConfig(architectures=["ViTModel"]).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match=message):
        preflight.check(configs.load(path, [f"{key}={tmp_path}/vit"]), job)


def test_without_pairs_dropout_has_to_make_two_views(path: str, decoder: str, tmp_path: Any) -> None:
    """SimCSE's positives are the text itself, so that a model without dropout would learn nothing from them."""
    preflight.check(
        configs.load(path, ["pairs=null", f"source_model={decoder}", "embed.pooling=last", "embed.max_length=64"]), "embed"
    )
    dry = GPT2Config.from_pretrained(decoder, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # keeps summary_first_dropout
    GPT2LMHeadModel(dry).save_pretrained(tmp_path / "dry")
    overrides = ["pairs=null", f"source_model={tmp_path}/dry", "embed.pooling=last", "embed.max_length=64"]
    with pytest.raises(
        ConfigError, match=r"pairs: without pairs, dropout makes two views of a line \(SimCSE\), and gpt2 has none"
    ):
        preflight.check(configs.load(path, overrides), "embed")
    preflight.check(configs.load(path, [*overrides, "method=focus", "shard.length=64"]), "pipeline")  # it ends before embed


def test_vectors_and_a_dictionary_stand_in_for_pairs(path: str) -> None:
    files = [f"transfer.methods.wechsel.space.{name}={path}" for name in ("source_vectors", "dictionary")]
    preflight.check(configs.load(path, ["pairs=null", "method=wechsel", *files]), "transfer")


def test_a_library_that_only_a_run_of_a_comparison_needs_is_missed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "is_installed", lambda package: package != "peft")
    runs = "compare.runs=[{name: thin, pretrain: {train: {lora_rank: 4}}}]"
    with pytest.raises(ConfigError, match="peft is not installed"):
        preflight.check(configs.load(path, [runs], "compare"), "compare")


def test_a_teacher_of_narrower_vectors_is_refused_before_it_encodes_all_texts(path: str, decoder: str) -> None:
    values = ["embed.objective=[info_nce,embedding_distillation]", f"embed.teacher={decoder}"]
    with pytest.raises(ConfigError, match=r"embed\.teacher=.*its vectors have 8 dimensions, the student's \d+"):
        preflight._check_embed_model(configs.load(path, values))


def test_the_first_token_of_a_decoder_reads_all_others_after_mntp(path: str, decoder: str) -> None:
    values = [f"source_model={decoder}", "embed.pooling=cls", "embed.max_length=32"]
    with pytest.raises(ConfigError, match="is causal"):
        preflight._check_embed_model(configs.load(path, values))
    preflight._check_embed_model(configs.load(path, [*values, "pretrain.objective=mntp"]))
