"""The documentation names what exists."""

import re
from pathlib import Path

import pytest

from ray_jobs.config.keys import keys
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import commands, jobs
from trainer.transfer.methods import METHODS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_paths_of_the_code_exist(page: Path) -> None:
    for path in re.findall(r"`((?:ray_jobs|cluster|trainer|data_pipeline|tests)/[\w/.]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_make_targets_and_modules_exist(page: Path) -> None:
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in re.findall(r"python -m (tests[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module


def test_jobs_and_commands_exist(page: Path) -> None:
    valid_names = {*jobs(), *commands(), "config", "methods", "JOB", "COMMAND", "--help"}
    for name in re.findall(r"(?:`|\$ |^ {4})scion ([A-Za-z-]+)", page.read_text(), re.M):
        assert name in valid_names, name


def test_keys_exist(page: Path) -> None:
    names = {key.name for key in keys(ScionConfig)}
    sections = {"shard", "transfer", "pretrain", "mine", "embed", "merge", "evaluate", "serve", "compare"}
    for key in re.findall(
        r"`((?:shard|transfer|pretrain|mine|embed|merge|evaluate|serve|compare)\.[a-z_.]+)(?:=[^`]*)?`", page.read_text()
    ):
        if "NAME" in key or key.endswith((".json", ".html", ".")) or key.partition(".")[0] not in sections:
            continue
        assert any(name == key or name.startswith((f"{key}.", f"{key}[")) for name in names), key


def test_every_method_stands_in_the_guide() -> None:
    table = (ROOT / "docs" / "guide.md").read_text()
    for name in METHODS:
        assert f"`{name}`" in table, name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
