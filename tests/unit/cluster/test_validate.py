"""The validator: what others wrote passes, what is broken is found, and findings say where."""

import json
import random
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.validate import check, maps, ray_options, rules, schema
from cluster.validate.__main__ import main
from cluster.validate.documents import Document, dotted, read
from cluster.validate.versions import locked
from data_pipeline.errors import ConfigError
from tests.manifests.__main__ import IMAGE, OTHERS, is_caught, share_of_typos
from tests.manifests.generate import document as valid_document
from tests.manifests.mutations import MUTATIONS, Mutation
from tests.manifests.render import GOLDEN, OVERLAYS, head

CLUSTER = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: small}
spec:
  headGroupSpec: {rayStartParams: {}, template: {spec: {containers: [{name: h, image: "rayproject/ray:2.52.0"}]}}}
"""


def cluster(**spec: Any) -> dict[str, Any]:
    """A small RayCluster, with more keys of its spec."""
    document: dict[str, Any] = yaml.safe_load(CLUSTER)
    document["spec"] |= spec
    return document


def container(**keys: Any) -> dict[str, Any]:
    """A small RayCluster, with more keys of its container."""
    document = cluster()
    document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0] |= keys
    return document


@pytest.fixture(scope="module")
def node() -> list[Any]:
    return read((GOLDEN / "node.yaml").read_text(), "node.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_overlays_are_valid_and_rendered_from_the_files_that_are_here(overlay: str) -> None:
    text = (GOLDEN / f"{overlay}.yaml").read_text()
    assert text.startswith(head()), "UPDATE_GOLDEN=1 make manifests renders them anew"
    assert check(read(text, overlay), strict=True) == []


@pytest.mark.parametrize("file", sorted(OTHERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_documents_of_others_are_valid(file: Path) -> None:
    assert check(read(file.read_text(), file.name)) == []


@given(st.integers(0, 2**32))
def test_whatever_the_schemas_allow_is_valid(seed: int) -> None:
    assert check([valid_document(random.Random(seed))]) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.what.replace(" ", "_"))
def test_what_is_broken_is_found_at_its_place(mutation: Mutation, node: list[Any]) -> None:
    assert is_caught(mutation, node)


def test_typos_in_keys_are_found(node: list[Any]) -> None:
    others = [one for file in sorted(OTHERS.glob("*.yaml")) for one in read(file.read_text(), file.name)]
    assert share_of_typos(others, 300, is_strict=False, seed=1) >= 0.95
    assert share_of_typos(node, 60, is_strict=True, seed=1) >= 0.95


def test_every_rule_of_the_published_schemas_is_known() -> None:
    """A new KubeRay may bring others."""

    def rules_of(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(rules_of, node))
        if not isinstance(node, dict):
            return set()
        own = {rule["rule"] for rule in node.get("x-kubernetes-validations", [])}
        return own.union(*map(rules_of, node.values()))

    published = json.loads((Path(schema.__file__).parent / "kuberay-1.7.0.json").read_text())
    assert rules_of(published) == {*rules.AT_CREATION, *rules.AT_UPDATE}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({}, "requires either BOTH onSuccess and onFailure"),
        ({"onSuccess": {"policy": "DeleteSelf"}}, "requires either BOTH"),
        ({"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}, "requires either the JobStatus"),
        (
            {
                "deletionRules": [
                    {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}}
                ]
            },
            "cannot be used together within the same deletion condition",
        ),
        ({"deletionRules": [{"policy": "DeleteEverything", "condition": {"jobStatus": "FAILED"}}]}, "is not one of"),
    ],
)
def test_rules_of_deletion(strategy: dict[str, Any], message: str) -> None:
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "j"}, "spec": {"deletionStrategy": strategy}}
    assert any(message in str(finding) for finding in check([job]))


@pytest.mark.parametrize(
    ("document", "finding"),
    [
        (cluster(rayVersions="2.52.0"), "RayCluster/small: spec: there is no key rayVersions. Did you mean rayVersion?"),
        (cluster(rayVersion=2.5), "RayCluster/small: spec.rayVersion: 2.5 is not of type string. Put it in quotes."),
        (
            cluster(workerGroupSpecs=[{"groupName": "a"}]),
            "RayCluster/small: spec.workerGroupSpecs[0]: template is missing. Add it.",
        ),
        (cluster() | {"apiVersion": "ray.io/v1alpha1"}, "apiVersion: ray.io/v1alpha1 is not served any more. Write ray.io/v1."),
        (
            cluster() | {"kind": "RayClustr"},
            "kind: KubeRay has no such kind. Known: RayCluster, RayCronJob, RayJob, RayService.",
        ),
        (cluster() | {"metadata": {"name": "Small"}}, "metadata.name: 'Small' is no name of Kubernetes."),
        (cluster() | {"metadata": {"name": "a", "lables": {}}}, "metadata: there is no key lables. Did you mean labels?"),
        (cluster() | {"metadata": {}}, "metadata: name is missing."),
        (cluster() | {"metadata": {"name": "a", "labels": {"a b": "c"}}}, "labels.a b: 'a b' is no key of labels"),
        (cluster() | {"metadata": {"name": "a", "annotations": {"a": 1}}}, "annotations.a: 1 is not text. Put it in quotes."),
        (container(resources={"limits": {"cpuu": 1}}), "limits.cpuu: there is no resource cpuu."),
        (
            container(resources={"limits": {"cpu": 0.5}}),
            "limits.cpu: 0.5 is neither a whole number nor text. Put it in quotes.",
        ),
        (container(resources={"requests": {"nvidia.com/gpu": 1}}), "a device is requested by its limit."),
        (container(resources={"limits": {"nvidia.com/gpu": "500m"}}), "devices are whole."),
        (container(env=[{"name": "A=B", "value": "1"}]), "env[0].name: 'A=B' is no name of a variable."),
        (
            container(ports=[{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]),
            "containerPort=1, protocol=TCP occurs twice",
        ),
        (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": None}},
            "data.a: None is not text.",
        ),
        (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a/b": ""}},
            "'a/b' is no name of a file.",
        ),
        (
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "c"}, "secrt": []},
            "there is no key secrt. Did you mean secrets?",
        ),
        (["no", "map"], "a document has apiVersion and kind."),
        ({}, "a document has apiVersion and kind."),
    ],
)
def test_findings_say_where_what_and_what_to_do(document: Any, finding: str) -> None:
    assert any(finding in str(one) for one in check([document])), [str(one) for one in check([document])]


def test_conventions_of_ours_are_asked_of_our_own_documents_only() -> None:
    """Two known devices apart by a letter, a mutable image, a name that is not in the set: all valid."""
    foreign = container(resources={"limits": {"nvidia.com/gpus": "1"}})
    foreign["spec"]["headGroupSpec"]["template"]["spec"]["serviceAccountName"] = "elsewhere"
    assert check([foreign]) == []
    found = [str(one) for one in check([foreign], strict=True)]
    assert any("nvidia.com/gpus is not known. Did you mean nvidia.com/gpu?" in one for one in found)
    assert any("there is no ServiceAccount elsewhere" in one for one in found)
    declared = [str(one) for one in check([foreign], strict=True, external=["ServiceAccount/elsewhere"])]
    assert not any("ServiceAccount elsewhere" in one for one in declared)


def test_keys_that_are_null_are_left_out_as_an_api_server_does() -> None:
    assert check([cluster(suspend=None, workerGroupSpecs=None)]) == []


def test_no_rule_of_ours_fails_on_a_value_of_another_type(node: list[Any]) -> None:
    """Every value of the set is replaced by one of another type, one at a time: findings, and no exception."""
    draw = random.Random(3)
    for _ in range(40):
        documents = deepcopy(node)
        content: Any = documents[draw.randrange(len(documents))]
        while True:
            places = list(content) if isinstance(content, dict) else list(range(len(content)))
            if not places:
                break
            place = draw.choice(places)
            if not isinstance(content[place], dict | list) or draw.random() < 0.1:
                content[place] = draw.choice([None, 7, "x", [], {}, True, [1], {"a": 1}, -1.5])
                break
            content = content[place]
        check(documents, strict=True)


def test_the_options_of_the_installed_ray_are_known() -> None:
    known = ray_options.options()
    assert known["num-cpus"] == "integer"
    assert {"head", "block", "dashboard-host", "object-store-memory", "labels"} <= set(known)


def test_ray_is_locked_to_the_version_that_is_installed() -> None:
    import ray

    assert locked() == ray.__version__


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", Decimal("0.5")),
        ("8Gi", 8 * 2**30),
        (2, 2),
        ("1e3", 1000),
        ("1E", 10**18),
        ("1Ei", 2**60),
        ("1.5k", 1500),
        ("5G", 5 * 10**9),
    ],
)
def test_quantities(text: Any, value: Any) -> None:
    assert maps.quantity(text) == value


@pytest.mark.parametrize("text", ["", "8 Gi", "Gi", "1.2.3", True, None, 0.5, "1gi"])
def test_what_is_no_quantity(text: Any) -> None:
    assert maps.quantity(text) is None


def test_yaml_is_read_as_kubectl_does() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- {kind: A, day: 2026-11-28, x: &a {b: 1}, y: *a}\n- {kind: B, 1: one}\n---\n"
    first, second = read(text, "f")
    assert first["day"] == "2026-11-28"
    assert first["x"] is not first["y"]
    assert second["1"] == "one"
    with pytest.raises(ConfigError, match="the key a occurs twice"):
        read("a: 1\na: 2", "f")
    with pytest.raises(ConfigError, match="it is not YAML"):
        read("a: &x [*x]", "f")


def test_the_command_prints_findings_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong, broken = tmp_path / "right.yaml", tmp_path / "wrong.yaml", tmp_path / "broken.yaml"
    right.write_text(CLUSTER + "---\n{apiVersion: example.com/v1, kind: Gadget, metadata: {name: g}}\n")
    wrong.write_text(CLUSTER.replace("spec:", "specs:", 1))
    broken.write_text("a: [")
    assert main([str(right)]) == 0
    printed = capsys.readouterr()
    assert (printed.out, "not checked: Gadget (there is no schema here)" in printed.err) == ("", True)
    assert main([str(right), str(wrong)]) == 1
    assert "there is no key specs" in capsys.readouterr().out
    assert main([str(broken)]) == 2
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_paths_are_written_as_people_do() -> None:
    assert dotted(("spec", "workerGroupSpecs", 0, "replicas")) == "spec.workerGroupSpecs[0].replicas"
    assert Document({"kind": "RayJob", "metadata": None}).title == "RayJob/(without a name)"
    assert IMAGE.startswith("registry.example/")
