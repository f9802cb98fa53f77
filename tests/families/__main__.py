"""`make families`: every family of `configs.FAMILIES` through the whole chain on a CPU, and its table for the docs.

    python -m tests.families [--only NAME …] [--write docs/families.md]

Exit code 1 if a cell is wrong. The last line of stdout is one JSON object.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
from transformers.utils import logging as transformers_logging

from tests import conftest
from tests.families import chain
from tests.families.chain import Row, Text
from tests.families.configs import FAMILIES, tiny

SAMPLE = Path("data_pipeline/sources/sample")
_COLUMNS = ("family", "tokenizer", "transfer", "forward", "difference", "pretrain", "embed", "loads")
_BEGIN, _END = "<!-- families: begin -->", "<!-- families: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="families, all of them if none is named")
    parser.add_argument("--write", help="a Markdown page whose table is replaced")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    chain.one_process()
    began, rows = time.perf_counter(), []
    for name in options.only or FAMILIES:
        start = time.perf_counter()
        rows.append(one(name, _text()))
        print(f"{name:<16} {rows[-1].forward:<18} {time.perf_counter() - start:5.1f} s  {rows[-1].wrong}", file=sys.stderr)
    if options.write:
        _replace(Path(options.write), table(rows))
    wrong = [row.family for row in rows if row.wrong]
    facts = {"families": chain.as_facts(rows), "wrong": wrong, "seconds": round(time.perf_counter() - began, 1)}
    print(table(rows))
    print(json.dumps(facts))
    return 1 if wrong else 0


def one(name: str, text: Text) -> Row:
    """The family's row; the expected result is in `FAMILIES`."""
    family = FAMILIES[name]
    with tempfile.TemporaryDirectory(prefix="scion-family-") as home:
        source = os.path.join(home, "source")
        tokenizer = conftest.FAMILIES[family.tokenizer]([pair["anchor"] for pair in text.pairs])
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
        tiny(name, len(tokenizer), **ids).save_pretrained(source)
        tokenizer.save_pretrained(source)
        row = chain.walk(Row(family=name, tokenizer=family.tokenizer), source, home, text)
    refusal = next((cell for cell in (row.transfer, row.pretrain) if cell.startswith("refused")), "")
    if not row.wrong and (bool(family.refused) != bool(refusal) or not re.search(family.refused, refusal)):
        row.wrong = f"{refusal or row.pretrain}, expected: {family.refused or 'no refusal'}"
    return row


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    for row in rows:
        cells = [getattr(row, column) for column in _COLUMNS]
        texts = ["–" if cell is None else f"{cell:.0e}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append(f"| {' | '.join(_short(cell) for cell in texts)} |")
    return "\n".join(lines)


def _short(cell: str) -> str:
    return cell.split(":")[0] if cell.startswith("refused") else cell


def _text() -> Text:
    greek = pq.read_table(SAMPLE / "test_text.parquet")["text"].to_pylist()
    return Text(greek=greek, pairs=pq.read_table(SAMPLE / "test_pairs.parquet").to_pylist())


def _replace(page: Path, content: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    page.write_text(f"{before}{_BEGIN}\n{content}\n{_END}{rest.partition(_END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
