"""A new method of a family takes one file and one row: in a copy of the code, an objective, a family of vectors, a builder, a
metric and a merge are added, and everything else follows."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "trainer/objectives/margin.py": '''
"""Hinge loss with a margin, for the test."""
from __future__ import annotations
from dataclasses import dataclass
from trainer.objectives.objective import Needs, PairVectors

@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    margin: float = 0.2
    """How much closer the positive must be."""

    @property
    def needs(self) -> Needs:
        return Needs(vectors=True)

    def __call__(self, reps: PairVectors, batch):
        import torch
        scores = reps.anchors.own @ reps.documents.all.T
        own = scores[torch.arange(len(scores)), reps.documents.first + torch.arange(len(scores))]
        return (self.margin + scores - own[:, None]).clamp_min(0).sum(dim=1) * batch.weights
''',
    "trainer/word_vectors/hashed.py": '''
"""Random vectors by a hash of the word, for the test."""
from __future__ import annotations
from collections import Counter
from dataclasses import dataclass
import numpy as np
from data_pipeline import keyed_random
from data_pipeline.errors import DataError

@dataclass(frozen=True, slots=True, kw_only=True)
class HashedConfig:
    dim: int = 16
    """Width of the vectors."""

def train(lines, config, what, executor=None):
    from trainer.word_vectors.vectors import TableVectors
    counts = Counter(word for line in lines for word in line.split())
    words = [word for word, count in counts.most_common() if count > 1]
    if not words:
        raise DataError(f"no word of the {what} occurs twice.", "transfer", "Give more text.")
    keys = np.array([keyed_random.key("hashed", word) for word in words], np.uint64)
    table = keyed_random.normals(keys[:, None], np.arange(config.dim)[None]).astype(np.float32)
    return TableVectors(words, table, np.array([counts[word] for word in words], np.float64))
''',
    "data_pipeline/pairs/builders/halves.py": '''
"""The two halves of a line are a pair, for the test."""
from __future__ import annotations
from dataclasses import dataclass
from data_pipeline import keyed_random
from data_pipeline.errors import DataError

@dataclass(frozen=True, slots=True)
class Halves:
    least: int = 4
    """Words of a line at least."""

    def __call__(self, documents, most, seed):
        from data_pipeline.pairs.text_pairs import Pairs
        lines = {line: lang for lang, text in documents for line in text.split("\\n") if len(line.split()) >= self.least}
        chosen = sorted(lines, key=lambda line: keyed_random.key("halves", seed, line))[:most]
        if not chosen:
            raise DataError("no line is long enough.", "text", "Give text in sentences.")
        halves = [(words[:len(words) // 2], words[len(words) // 2:]) for words in map(str.split, chosen)]
        return Pairs(ids=[str(keyed_random.key(line)) for line in chosen], anchors=[" ".join(one) for one, _ in halves],
                     positives=[" ".join(other) for _, other in halves], negatives=[[] for _ in chosen],
                     langs=[lines[line] for line in chosen])
''',
    "trainer/evaluation/spread.py": '''
"""The mean cosine of different anchors, for the test."""
from __future__ import annotations
from dataclasses import dataclass
from trainer.evaluation.measured import Measured

@dataclass(frozen=True, slots=True)
class Spread:
    most: int = 100
    """Anchors at most."""

    def __call__(self, embedder, pairs):
        import numpy as np
        def score(places):
            vectors = embedder.encode([pairs.anchors[place] for place in places[: self.most]])
            return {"mean_cosine": float(np.mean(vectors @ vectors.T))}
        langs = sorted(set(pairs.langs))
        places = {lang: [n for n, one in enumerate(pairs.langs) if one == lang] for lang in langs}
        by_language = {lang: score(places[lang]) for lang in langs} if len(langs) > 1 else {}
        return Measured(scores=score(list(range(len(pairs)))), by_language=by_language)
''',
    "trainer/merging/last.py": '''
"""The last model, for the test."""
from __future__ import annotations
from dataclasses import dataclass
from trainer.merging.merge import Needs, Recipe

@dataclass(frozen=True, slots=True)
class Last:
    """The last model counts alone."""

    @property
    def needs(self):
        return Needs()

    def __call__(self, models):
        return Recipe(merge=lambda column: column.models[-1])
''',
}
ROWS = {
    "trainer/objectives/__init__.py": ("from trainer.objectives.margin import Margin", '"margin": Entry(Margin, "a test")'),
    "trainer/word_vectors/__init__.py": (
        "from trainer.word_vectors import hashed",
        '"hashed": Entry(hashed.HashedConfig, hashed.train, "a test")',
    ),
    "data_pipeline/pairs/builders/__init__.py": (
        "from data_pipeline.pairs.builders.halves import Halves",
        '"halves": Entry(Halves, "a test")',
    ),
    "trainer/evaluation/__init__.py": ("from trainer.evaluation.spread import Spread", '"spread": Entry(Spread, "a test")'),
    "trainer/merging/__init__.py": ("from trainer.merging.last import Last", '"last": Entry(Last, "a test")'),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with five more methods: each a file, an import and a row."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("ray_jobs", "cluster", "trainer", "data_pipeline", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "sample"))
    (root / "data_pipeline/sources/sample").symlink_to(ROOT / "data_pipeline/sources/sample")
    for name in ("scion.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for path, text in FILES.items():
        (root / path).write_text(text)
    for path, (imported, row) in ROWS.items():
        text = (root / path).read_text()
        text, found = re.subn(r"(: dict\[str, Entry\] = \{\n)", rf"\1    {row},\n", text)
        assert found == 1, path
        text = text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{imported}\n", 1)
        (root / path).write_text(text if imported in text else f"{imported}\n{text}")
    return root


def run(copy: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_help_text_and_the_list_of_methods_follow(copy: Path) -> None:
    keys = run(copy, "-m", "ray_jobs.cli", "config")
    for key in (
        "embed.objectives.margin.margin: number, default 0.2",
        "transfer.methods.focus.hashed.dim: integer, default 16",
        "embed.builders.halves.least: integer, default 4",
        "evaluate.settings.spread.most: integer, default 100",
    ):
        assert key in keys
    assert "How much closer the positive must be." in keys
    listed = run(copy, "-m", "ray_jobs.cli", "methods")
    assert all(re.search(rf"^  {name} +a test$", listed, re.M) for name in ("margin", "hashed", "halves", "spread", "last"))


def test_the_contract_tests_follow_and_pass(copy: Path) -> None:
    tests = [
        f"tests/contract/test_{name}.py" for name in ("objectives", "vectors", "builders", "metrics", "merges", "configuration")
    ]
    printed = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "-rA", *tests)
    assert all(f"[{name}]" in printed for name in ("margin", "hashed", "halves", "spread", "last"))


def test_a_new_family_of_vectors_starts_a_model(copy: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys, scion\nfrom tests.conftest import SAMPLE, tiny_model, wordpiece\n"
        "from trainer.transfer.methods.focus import FocusConfig\nimport pyarrow.parquet as pq\n"
        "texts = pq.read_table(SAMPLE / 'test_text.parquet')['text'].to_pylist()[:200]\n"
        "english = [row['anchor'] for row in pq.read_table(SAMPLE / 'test_pairs.parquet').to_pylist()]\n"
        "tokenizer = wordpiece(english)\ntiny_model(tokenizer).save_pretrained(sys.argv[1])\n"
        "tokenizer.save_pretrained(sys.argv[1])\n"
        "model = scion.transfer(sys.argv[1], text=texts, settings={'focus': FocusConfig(kind='hashed')},\n"
        "                       tokenizer=scion.TokenizerConfig(vocab_size=600))\n"
        "scion.verify(model)\nprint(json.dumps(model.plan.fates()))\n"
    )
    fates = json.loads(run(copy, "-c", code, str(tmp_path / "source")).splitlines()[-1])
    assert fates["neighbours"] > 50
