"""The nightly copy of a RayJob, against an API of Kubernetes that a test plays."""

import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.kuberay import nightly
from cluster.validate import check
from cluster.validate.documents import read
from tests.manifests.render import GOLDEN

NOW = datetime(2026, 11, 28, 2, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    """The RayJob as the API returns it."""
    documents = read((GOLDEN / "node.yaml").read_text(), "node.yaml")
    found = next(one for one in documents if one["kind"] == "RayJob" and one["metadata"]["name"] == "pretrain")
    found["metadata"] |= {"uid": "1", "resourceVersion": "7", "creationTimestamp": "2026-11-01T00:00:00Z"}
    return {**found, "status": {"jobDeploymentStatus": "Suspended"}}


class Api:
    """What the API holds and was asked."""

    def __init__(self, template: dict[str, Any], copies: list[dict[str, Any]]) -> None:
        self.template, self.copies, self.asked, self.created = template, copies, [], []  # type: ignore[var-annotated]


@pytest.fixture
def api(template: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API at localhost, with a certificate of its own."""
    state = Api(template, [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers["Authorization"]))
            name = self.path.partition("/rayjobs/")[2]
            if "labelSelector" in self.path:
                self._answer(200, {"items": state.copies})
            elif name == state.template["metadata"]["name"]:
                self._answer(200, state.template)
            else:
                self._answer(404, {"message": f'rayjobs.ray.io "{name}" not found'})

        def do_POST(self) -> None:
            state.created.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(201, state.created[-1])

        def _answer(self, code: int, content: dict[str, Any]) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None: ...

    certificate, key = tmp_path / "ca.crt", tmp_path / "key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("team")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def test_a_copy_is_created_and_is_valid(api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly.main(["pretrain"], tmp_path) == 0
    (created,) = api.created
    assert f"created {created['metadata']['name']}" in capsys.readouterr().out
    assert created["metadata"]["labels"][nightly.LABEL] == "pretrain"
    assert check([created]) == []
    assert {key for _, key in api.asked} == {"Bearer secret"}
    assert all(path.startswith("/apis/ray.io/v1/namespaces/team/rayjobs") for path, _ in api.asked)


def test_nothing_is_created_while_a_copy_runs(api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.copies = [
        {"metadata": {"name": "pretrain-1"}, "status": {"jobDeploymentStatus": "Complete"}},
        {"metadata": {"name": "pretrain-2"}, "status": {"jobDeploymentStatus": "Running"}},
    ]
    assert nightly.main(["pretrain"], tmp_path) == 0
    assert (api.created, capsys.readouterr().out) == ([], "pretrain-2 still runs; nothing is created\n")
    api.copies[1]["status"]["jobDeploymentStatus"] = "Failed"
    assert nightly.main(["pretrain"], tmp_path) == 0
    assert len(api.created) == 1


def test_a_copy_that_has_no_status_yet_runs(api: Api, tmp_path: Path) -> None:
    api.copies = [{"metadata": {"name": "pretrain-1"}}]
    assert nightly.main(["pretrain"], tmp_path) == 0
    assert api.created == []


def test_a_template_that_is_not_there_is_an_error(api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly.main(["other"], tmp_path) == 1
    assert 'error: other: Kubernetes answered 404: rayjobs.ray.io "other" not found' in capsys.readouterr().err


def test_a_copy_starts_at_once_and_may_write_below_its_date(template: dict[str, Any]) -> None:
    dated = {**template, "spec": {**template["spec"], "entrypoint": "python -m ray_jobs.pretrain c.yaml output=s3://b/{date}"}}
    made = nightly.make_copy(dated, NOW)
    assert made["metadata"]["name"] == "pretrain-20261128-0200"
    assert made["spec"]["entrypoint"].endswith("output=s3://b/2026-11-28")
    assert "suspend" not in made["spec"]
    assert dated["spec"]["suspend"] is True
    assert set(made) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(made["metadata"]) == {"name", "labels"}


def test_only_the_standard_library_is_imported() -> None:
    """The pod has 128 MiB."""
    code = "import sys, cluster.kuberay.nightly; print([m for m in ('ray', 'torch', 'yaml', 'psutil') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "[]\n"
