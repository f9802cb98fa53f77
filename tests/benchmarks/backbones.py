"""Training-free text vectors of a causal model: last token, means, echo and PromptEOL.

    python -m tests.benchmarks.backbones FOLDER [--steps 400] [--seeds 0 1 2]

No package ships a causal model, so `scion pretrain` makes one from random weights for each seed: GPT-2's shape with 4 layers of
width 128, on the English half of the sample (`toy_source`). It is a toy, and may order the ways otherwise than a large model
does. The task needs no labels: paragraphs of files that the model has not read are cut in two, and each first half has to find
its second half among all (`retrieval`, both directions averaged). Chance is 1 / n. Each way is also measured on the random
weights, which shows what a way owes to the words alone. The last line is one JSON object, with means and standard deviations
over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.pairs.text_form import TEMPLATES
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.tokenizers import train as tokenizers
from tests.benchmarks import toy_source
from tests.conftest import SAMPLE
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.evaluation.retrieval import Retrieval
from trainer.models import loading
from trainer.models.bidirectional import make_bidirectional

WORDS, MOST = 16, 500
"""Fewest words of a paragraph, and most paragraphs."""
WAYS: dict[str, dict[str, Any]] = {
    "last": {"pooling": "lasttoken"},
    "mean": {"pooling": "mean"},
    "weightedmean": {"pooling": "weightedmean"},
    "echo mean": {"pooling": "mean", "template": TEMPLATES["echo"]},
    "echo last": {"pooling": "lasttoken", "template": TEMPLATES["echo"]},
    "prompteol": {"pooling": "lasttoken", "template": TEMPLATES["prompteol"]},
    "bidirectional mean": {"pooling": "mean", "bidirectional": True},
}


def main(folder: Path, steps: int, seeds: list[int]) -> None:
    toy_source.main(folder)
    pairs = halves()
    found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    for seed in seeds:
        random_model, trained = models(folder, steps, seed)
        for weights, source in (("trained", trained), ("random weights", random_model)):
            for way, settings in WAYS.items():
                measured = scores(source, settings, pairs)
                for measure, value in measured.items():
                    found[way].setdefault(f"{weights} {measure}", []).append(value)
                print(f"seed {seed}, {weights}, {way}: {measured}", file=sys.stderr)
    figures = {
        way: {
            name: {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
            for name, values in measures.items()
        }
        for way, measures in found.items()
    }
    last = figures["last"]["trained mrr_at_10"]["mean"]
    ratios = {f"{way} / last": figures[way]["trained mrr_at_10"]["mean"] / last for way in WAYS if way != "last"}
    content = {"ways": figures, "paragraphs": len(pairs), "steps": steps, "seeds": seeds}
    print(json.dumps({"benchmark": "backbones", "device": "cpu", "ratios": ratios, "figures": content}))


def halves() -> Pairs:
    """English paragraphs of the files that the model does not read, each cut at its middle word."""
    rows = pq.read_table(SAMPLE / "pairs.parquet").to_pylist()
    texts = dict.fromkeys(row["anchor"] for row in rows if not toy_source.first_half(row["id"]))
    words = [text.split() for text in texts if len(text.split()) >= WORDS][:MOST]
    cut = [(" ".join(one[: len(one) // 2]), " ".join(one[len(one) // 2 :])) for one in words]
    anchors, positives = ([pair[side] for pair in cut] for side in (0, 1))
    names = [str(number) for number in range(len(cut))]
    return Pairs(ids=names, anchors=anchors, positives=positives, negatives=[[] for _ in cut], langs=["en"] * len(cut))


def models(folder: Path, steps: int, seed: int) -> tuple[str, str]:
    """Folders of a model with random weights, and of the same one pretrained by `scion`."""
    tokenizer = tokenizers.load(str(folder / "gpt2"))
    source, output = folder / f"gpt2-{seed}", folder / f"run-{seed}-{steps}"
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=2, **toy_source.SHAPE)
    GPT2LMHeadModel(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    settings = [
        one
        for one in (folder / "english.args").read_text().split("\n")
        if one and not one.startswith(("source_model", "output"))
    ]
    settings += [f"source_model={source}", f"output={output}", f"seed={seed}", f"pretrain.train.steps={steps}"]
    for job in ("shard", "transfer", "pretrain"):
        command = [sys.executable, "-m", "ray_jobs.cli", job, "ray_jobs/conf/demo.yaml", *settings]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return str(output / "transfer"), str(output / "pretrain")


def scores(source: str, settings: dict[str, Any], pairs: Pairs) -> dict[str, float]:
    """Accuracy at 1 and MRR at 10, the mean of both directions."""
    options = dict(settings)
    model: PreTrainedModel = loading.encoder(source)
    if options.pop("bidirectional", False):
        make_bidirectional(model)
    tokenizer: PreTrainedTokenizerFast = tokenizers.load(source)
    embedder = Embedder(model, tokenizer, EmbedderSpec(max_length=toy_source.LENGTH, **options))
    ways = Retrieval()(embedder, pairs).scores
    return {name: (ways["forward"][name] + ways["backward"][name]) / 2 for name in ("accuracy_at_1", "mrr_at_10")}


def parse() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where models and shards are kept")
    parser.add_argument("--steps", type=int, default=400, help="of pretraining")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return vars(parser.parse_args())


if __name__ == "__main__":
    main(**parse())
