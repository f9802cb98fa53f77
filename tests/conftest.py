"""Shared fixtures: tiny tokenizers and models of every family, real text, one Ray cluster, and no network."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pyarrow.parquet as pq
import pytest
import ray
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from data_pipeline.tokenizers import train
from trainer.transfer.problem import Problem
from trainer.word_vectors.texts import Texts

SAMPLE = Path(__file__).parent.parent / "data_pipeline" / "sources" / "sample"
hypothesis.settings.register_profile("scion", deadline=None)  # a loaded machine is slow, not wrong
hypothesis.settings.load_profile("scion")
LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "", None}


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A test that reaches out fails, whatever the machine could reach."""
    real = socket.socket.connect
    local_hosts = {socket.gethostname(), *LOOPBACK}
    local_hosts.add(ray.util.get_node_ip_address())

    def connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host not in local_hosts and not str(host).startswith("127."):
            raise AssertionError(f"a test tried to reach {address}")
        real(self, address)

    socket.socket.connect = connect  # type: ignore[method-assign, assignment]
    yield
    socket.socket.connect = real  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray cluster of a test run."""
    from cluster.session import ray_session as session

    with session(workers=2, worker_cpus=1.0, address=None):
        yield


@pytest.fixture(scope="session")
def greek() -> list[str]:
    return pq.read_table(SAMPLE / "test_text.parquet")["text"].to_pylist()


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    return pq.read_table(SAMPLE / "test_pairs.parquet").to_pylist()


@pytest.fixture(scope="session")
def english(pairs: list[dict]) -> list[str]:
    return [row["anchor"] for row in pairs]


def wordpiece(texts: list[str], size: int = 800) -> PreTrainedTokenizerFast:
    """BERT's family; trained in the plain way, so not the same on every run."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def roberta_like(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )


ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level(texts: list[str], size: int = 800) -> PreTrainedTokenizerFast:
    """GPT-2's and RoBERTa's family."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return roberta_like(backend)


def unigram(texts: list[str], size: int = 800) -> PreTrainedTokenizerFast:
    """SentencePiece's family, as in XLM-R."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=ROBERTA_SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return roberta_like(backend)


def byte_fallback(texts: list[str], size: int = 1000) -> PreTrainedTokenizerFast:
    """Llama-2's and Gemma's family: SentencePiece BPE that spells unknown characters in bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=ROBERTA_SPECIAL + spelt, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in spelt]
    spec["pre_tokenizer"] = None
    prepend, replace = {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace | {"content": "\u2581"}]}
    return roberta_like(Tokenizer.from_str(json.dumps(spec)))


FAMILIES = {"wordpiece": wordpiece, "byte_level": byte_level, "unigram": unigram, "byte_fallback": byte_fallback}


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, english: list[str]) -> PreTrainedTokenizerFast:
    """An English tokenizer of each family in turn."""
    return FAMILIES[request.param](english)


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def problem(request: pytest.FixtureRequest, english: list[str], greek: list[str], pairs: list[dict]) -> Problem:
    """From an English vocabulary of each family in turn to one for Greek and English."""
    source = FAMILIES[request.param](english)
    target = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1500))
    texts = Texts(corpus=lambda: iter(greek), anchors=english, positives=[row["positive"] for row in pairs])
    return Problem(source, target, texts, seed=3)


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM | RobertaForMaskedLM:
    """Two layers of width 32 with weights of a fixed seed; RoBERTa where the tokenizer has its special tokens."""
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if tokenizer.cls_token == "[CLS]":
            model = BertForMaskedLM(BertConfig(**shared))
        else:
            model = RobertaForMaskedLM(RobertaConfig(**shared, bos_token_id=0, eos_token_id=2))
        # A bias of zeros would hide a bias that was lost.
        torch.nn.init.normal_(model.get_output_embeddings().bias)
        # Random rows of a fresh model are tiny and alike: spread them so that a wrong row shows.
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model.eval()


def tiny_decoder(tokenizer: PreTrainedTokenizerFast, kind: str = "gpt2", tied: bool = True) -> PreTrainedModel:
    """GPT-2 or Llama: two layers of width 32 with weights of a fixed seed."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied} | ids
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if kind == "gpt2":
            dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
            model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=130, **dropout, **settings))
        else:
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
            model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64, max_position_embeddings=130, **settings))
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> str:
    """A model folder as a user has it: a tiny BERT that reads English."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = wordpiece(english)
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank, in this process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()
