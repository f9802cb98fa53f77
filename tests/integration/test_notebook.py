"""The notebook of the documentation runs in a kernel, as for a user."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCION_NOTEBOOK_OUTPUT", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    return NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()


def results(notebook: nbformat.NotebookNode, containing: str) -> str:
    """The results of the cell whose source contains a text."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and containing in cell.source]
    texts = [output.get("data", {}).get("text/plain", "") + output.get("text", "") for output in cell.outputs]
    return "\n".join(texts)


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_and_shows_what_it_says(executed: nbformat.NotebookNode) -> None:
    assert "'aligned':" in results(executed, "scion.transfer(")
    assert float(results(executed, "english @ greek.T")) > 0.5  # translations are found before any training
    assert "pretrain" in results(executed, "scion.run(\n    job")
    assert "'0':" in results(executed, "bits_per_byte")
    assert "no such file" in results(executed, "nowhere/*.parquet")
