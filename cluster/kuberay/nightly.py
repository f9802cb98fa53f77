"""Creates a copy of a RayJob of this namespace: the core CronJob `nightly` runs it.

    python -m cluster.kuberay.nightly TEMPLATE

The copy is called TEMPLATE-YYYYMMDD-HHMM and starts at once, while the template stays suspended. `{date}` in its entrypoint
becomes the date, for runs with an output of their own: `output=s3://bucket/nightly/{date}`. Nothing is created while an
earlier copy runs. Only the standard library is used, so that the pod starts within a second.
"""

import copy
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Token, certificate and namespace that Kubernetes gives to a pod."""
LABEL = "scion/template"
"""Holds the name of the template of a copy."""
_ENDED = ("Complete", "Failed", "ValidationFailed")


def main(arguments: list[str], account: Path = ACCOUNT) -> int:
    """Creates the copy and returns the exit code."""
    template = arguments[0]
    try:
        copies = _request(account, f"?labelSelector={LABEL}%3D{template}")["items"]
        if running := [job["metadata"]["name"] for job in copies if not _has_ended(job)]:
            print(f"{running[0]} still runs; nothing is created")
            return 0
        created = make_copy(_request(account, f"/{template}"), datetime.now(UTC))
        _request(account, "", created)
    except urllib.error.HTTPError as error:
        print(f"error: {template}: Kubernetes answered {error.code}: {_message(error)}", file=sys.stderr)
        return 1
    print(f"created {created['metadata']['name']}")
    return 0


def make_copy(template: dict[str, Any], now: datetime) -> dict[str, Any]:
    """The RayJob to create from a template that the API has returned."""
    metadata, spec = template["metadata"], copy.deepcopy(template["spec"])
    spec.pop("suspend", None)
    spec.pop("jobId", None)
    if "entrypoint" in spec:
        spec["entrypoint"] = spec["entrypoint"].replace("{date}", f"{now:%Y-%m-%d}")
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": f"{metadata['name']}-{now:%Y%m%d-%H%M}",
            "labels": {**metadata.get("labels", {}), LABEL: metadata["name"]},
        },
        "spec": spec,
    }


def _has_ended(job: dict[str, Any]) -> bool:
    return job.get("status", {}).get("jobDeploymentStatus") in _ENDED


def _request(account: Path, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads a path below the RayJobs of this namespace, or creates the document there.

    Raises:
        urllib.error.HTTPError: Kubernetes refuses.
    """
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    namespace, token = ((account / name).read_text().strip() for name in ("namespace", "token"))
    request = urllib.request.Request(
        f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}",
        data=None if document is None else json.dumps(document).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
    with urllib.request.urlopen(request, context=trusted, timeout=30) as response:
        return dict(json.load(response))


def _message(error: urllib.error.HTTPError) -> str:
    """What Kubernetes says about a refusal."""
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError):
        return str(error.reason)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
