"""Every method with a source of every family, tied and untied, each verified: `python -m tests.benchmarks.transfer_matrix`.

The sources are as large as real ones where it matters, in the vocabulary: WordPiece is the demo's MiniLM, byte-level BPE has
50,257 pieces as GPT-2, Unigram 250,002 with padding id 1 as XLM-R. Only MiniLM's weights are trained; the others are narrow
and random, since no hub can be reached here. Prints a table, and one line of JSON at the end. Takes some 20 minutes.
"""

import argparse
import collections
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from cluster.session import ray_session
from data_pipeline.errors import ScionError
from data_pipeline.tokenizers import train
from ray_jobs import verify
from ray_jobs.config import load as configs
from ray_jobs.transfer import main as transfer
from tests.conftest import ROBERTA_SPECIAL, SAMPLE, byte_level, roberta_like, tiny_decoder
from trainer.transfer.methods import METHODS

CONF = "ray_jobs/conf/demo.yaml"
QUICK = ("space.fasttext.epochs=1", "space.fasttext.dim=32")


def main() -> None:
    """Builds the sources, runs all methods on each, and prints what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="/tmp/scion-matrix")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--pieces", type=int, default=250_002)
    options = parser.parse_args()
    root = Path(options.output)
    shutil.rmtree(root, ignore_errors=True)
    console, failed, seconds = Console(highlight=False, soft_wrap=True), [], {}
    with ray_session(workers=2, worker_cpus=1.0, address=None):
        for name, folder in sources(root, options.pieces).items():
            for method in options.methods:
                start = time.perf_counter()
                try:
                    run(name, folder, method, root, console)
                except ScionError as error:
                    failed.append(f"{name} {method}: {error}")
                seconds[f"{name} {method}"] = round(time.perf_counter() - start, 1)
    print("\n".join(failed) or "all passed", file=sys.stderr)
    print(json.dumps({"runs": len(seconds), "failed": failed, "seconds": seconds}))


def run(name: str, folder: str, method: str, root: Path, console: Console) -> None:
    """`scion transfer` and `scion verify`, as a user would run them, one process for all."""
    output = root / "runs" / name
    shutil.rmtree(output / "transfer", ignore_errors=True)
    extra = [f"transfer.methods.{method}.{item}" for item in QUICK if method in ("wechsel", "ofa", "tokenadapt", "ramen")]
    if method in ("omp", "clp", "clp_plus"):
        extra = [f"transfer.methods.{method}.donor={_donor(name, folder, root)}"]
        extra += [f"transfer.methods.{method}.top=64"] if method == "clp" else []
    settings = [f"source_model={folder}", f"method={method}", f"output={output}", *extra]
    config = configs.with_absolute_paths(configs.load(CONF, settings))
    transfer(config, console)
    verify.command([str(output / "transfer")], console)


def _donor(name: str, folder: str, root: Path) -> str:
    """The folder of a donor for the new vocabulary: the model that `aligned` makes of the same source."""
    donor = root / "donors" / name
    if not donor.exists():
        console = Console(quiet=True)
        config = configs.load(CONF, [f"source_model={folder}", "method=aligned", f"output={root / 'runs' / name}"])
        shutil.rmtree(root / "runs" / name / "transfer", ignore_errors=True)
        transfer(configs.with_absolute_paths(config), console)
        donor.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "runs" / name / "transfer", donor)
    return str(donor)


def sources(root: Path, pieces: int) -> dict[str, str]:
    """Folders of the six sources."""
    english = pq.read_table(SAMPLE / "pairs.parquet")["anchor"].to_pylist()
    minilm = configs.load(CONF, []).source_model
    bytes_ = byte_level(english, 50_257)
    unigram = large_unigram(english, pieces)
    by_name: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerFast]] = {}
    for tied in (True, False):
        kind = "tied" if tied else "untied"
        model = AutoModelForMaskedLM.from_pretrained(minilm)
        model.config.tie_word_embeddings = tied
        if not tied:
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.detach() * 1.5)
        by_name[f"wordpiece-{kind}"] = model, train.load(minilm)
        by_name[f"byte-level-{kind}"] = tiny_decoder(bytes_, "gpt2", tied), bytes_
        by_name[f"unigram-{kind}"] = xlmr(unigram, tied), unigram
    for name, (model, tokenizer) in by_name.items():
        model.save_pretrained(root / "sources" / name)
        tokenizer.save_pretrained(root / "sources" / name)
    return {name: str(root / "sources" / name) for name in by_name}


def large_unigram(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """XLM-R's layout with as many pieces: words and parts of words of the text by frequency, `<pad>` 1, `<mask>` last."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for word in re.findall(r"\w+|[^\w\s]", text):
            marked = "\u2581" + word
            counts.update(marked[start:stop] for start in range(len(marked)) for stop in range(start + 1, len(marked) + 1))
    total = counts.total()
    special = ROBERTA_SPECIAL[:-1]
    common = [piece for piece, _ in counts.most_common(size - len(special) - 1)]
    vocab = [(piece, 0.0) for piece in special] + [(piece, math.log(counts[piece] / total)) for piece in common]
    vocab += [(f"\u2581filling{number}", -30.0) for number in range(size - len(vocab) - 1)] + [("<mask>", 0.0)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return roberta_like(backend)


def xlmr(tokenizer: PreTrainedTokenizerFast, tied: bool) -> XLMRobertaForMaskedLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    settings = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=130,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=tied,
        **sizes,
    )
    torch.manual_seed(7)
    return XLMRobertaForMaskedLM(settings).eval()


if __name__ == "__main__":
    main()
