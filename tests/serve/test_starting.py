"""Settings and states in which a server refuses to start."""

import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cluster.serve.app import app, build_app, serve_on_ray
from cluster.serve.config import ServeConfig
from data_pipeline.errors import ClusterError, ConfigError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("replicas", 0),
        ("cpus_per_replica", 0),
        ("max_batch_tokens", 0),
        ("max_inputs", 0),
        ("max_body_bytes", 0),
        ("max_queued_requests", 0),
        ("port", 65536),
        ("port", -1),
        ("name", ""),
    ],
)
def test_an_impossible_setting_is_refused_by_name(key, value) -> None:
    with pytest.raises(ConfigError, match=f"serve.{key}: must"):
        ServeConfig(**{key: value})


def test_a_server_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve\.model: no model is named"):
        build_app(ServeConfig())


def test_the_settings_of_a_ray_service_are_read_also_as_strings() -> None:
    assert app({"model": "x", "replicas": "2", "gpu": "false"})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "x", "modle": "y"}, "args.modle: there is no such setting. Known: model, name"),
        ({"model": "x", "replicas": "two"}, "args.replicas: .*got 'two'"),
        ({"model": "x", "replicas": 0}, "serve.replicas: must be at least 1, got 0"),
        ({}, "no model is named"),
    ],
)
def test_wrong_settings_of_a_ray_service_are_named(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        app(args)


def test_a_port_in_use_is_named_before_anything_starts(ray_session, folder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=rf"port {port} is in use\. Choose another with serve\.port="),
            serve_on_ray(ServeConfig(model=folder, port=port)),
        ):
            pass


def test_an_address_of_another_machine_is_refused(ray_session, folder) -> None:
    config = ServeConfig(model=folder, host="203.0.113.1", port=0)
    with pytest.raises(ClusterError, match=r"serve\.host: cannot listen on 203\.0\.113\.1"), serve_on_ray(config):
        pass


@pytest.mark.parametrize(("settings", "kind"), [({"replicas": 1000}, "CPU"), ({"gpu": True}, "GPU")])
def test_more_copies_than_the_cluster_has_room_for_are_refused(ray_session, folder, settings, kind) -> None:
    config = ServeConfig(model=folder, port=0, **settings)
    with pytest.raises(ClusterError, match=f"need .* {kind}s, the cluster has"), serve_on_ray(config):
        pass


def test_a_model_that_does_not_load_ends_the_start_with_the_reason(ray_session, tmp_path) -> None:
    with (
        pytest.raises(ClusterError, match=r"the server did not start: model .*: the folder has no config\.json"),
        serve_on_ray(ServeConfig(model=str(tmp_path), port=0)),
    ):
        pass


def test_a_second_server_on_the_same_ray_is_refused_and_the_first_goes_on(ray_session, folder) -> None:
    config = ServeConfig(model=folder, port=0)
    with serve_on_ray(config) as first:
        with pytest.raises(ClusterError, match="serves something already"), serve_on_ray(config):
            pass
        with urllib.request.urlopen(f"{first}/models", timeout=60) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("arguments", [["{folder}"], ["serve.model={folder}"], ["serve.models={{m: {folder}}}"]])
def test_a_folder_is_served_without_a_configuration(folder: str, arguments: list[str]) -> None:
    given = [argument.format(folder=folder) for argument in arguments]
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", *given, "serve.port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert folder in process.stdout.readline()
    url = process.stdout.readline().strip().removesuffix("/embeddings")
    with urllib.request.urlopen(f"{url}/models") as answer:
        assert len(json.load(answer)["data"]) == 1
    process.terminate()
    assert process.wait(60) == 0
    assert "stopping" in process.stdout.read()


def test_replicas_get_the_whole_paths_of_all_models(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may start in another folder."""
    path = Path(folder)
    monkeypatch.chdir(path.parent)
    given = build_app(ServeConfig(model=path.name, models={"other": path.name, "hub": "org/name"}))
    config = given._bound_deployment.init_args[0]
    assert config.folders == {"embedder": folder, "other": folder, "hub": "org/name"}
