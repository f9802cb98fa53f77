"""Several models by name and version, aliases, and new versions while requests are answered."""

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient
from transformers import BertConfig, BertModel, XLNetConfig, XLNetModel

from cluster.serve.app import EmbedderReplica
from cluster.serve.batching import Budget
from cluster.serve.config import ServeConfig, with_models
from cluster.serve.front import Front
from cluster.serve.load import Connection
from cluster.serve.loading import Loader
from cluster.serve.metrics import Prometheus
from cluster.serve.model import version_of
from cluster.serve.models import Models, Shelf
from cluster.serve.process import serve_in_process
from cluster.serve.protocol import RequestError
from data_pipeline.errors import ConfigError, ModelError
from tests.conftest import FAMILIES
from tests.serve.test_protocol import CARD
from tests.serve.test_serving import send
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec

TEXTS = ["click the button", "save", "open the file with the other program"]


def model(name: str) -> SimpleNamespace:
    return SimpleNamespace(card=replace(CARD, name=name, version="a1b2"))


SERVED = Models({"org/tiny": model("org/tiny"), "old": model("old")}, {"text-embedding-3-small": "org/tiny"})


@pytest.mark.parametrize("asked", ["org/tiny", "org/tiny@a1b2", "text-embedding-3-small", "text-embedding-3-small@a1b2"])
def test_a_model_has_a_name_aliases_and_a_version(asked: str) -> None:
    assert SERVED.find(asked).card.id == "org/tiny@a1b2"


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        (None, 400, "is missing. Served here: org/tiny, old, text-embedding-3-small"),
        (7, 400, "must be a string, got number"),
        ("tiny", 404, 'there is no model "tiny"'),
        ("old@ffff", 404, 'version "ffff" is not served. The served one is a1b2. Ask for old@a1b2, or for old'),
        ("old@", 404, 'version "" is not served'),
        ("x" * 1000, 404, 'there is no model "xxx'),
    ],
)
def test_a_model_that_is_not_there_is_named(asked, status, message) -> None:
    with pytest.raises(RequestError) as error:
        SERVED.find(asked)
    assert (error.value.status, error.value.where) == (status, "model")
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a@b"}, r"serve\.name: must be a name without @"),
        ({"models": {"": "x"}}, "must be a name without @"),
        ({"model": "y", "models": {"embedder": "x"}}, "is the name of serve.model"),
        ({"models": {"a@b": "x"}}, r"serve\.models: must be a name without @"),
        ({"aliases": {"": "embedder"}}, r"serve\.aliases: must be a name"),
        ({"cors_origins": ("x.org",)}, "is no origin"),
        ({"cors_origins": ("https://x.org/",)}, "without a path"),
        ({"aliases": {"a": "b"}}, "'a' cannot stand for 'b'. An alias is a new name for one of embedder"),
        ({"aliases": {"embedder": "embedder"}}, "cannot stand for"),
    ],
)
def test_names_that_mean_nothing_or_two_things_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(**settings)


@pytest.mark.parametrize("origin", ["https://x.org", "http://localhost:3000", "*", "chrome-extension://abc"])
def test_origins_are_taken(origin: str) -> None:
    assert ServeConfig(cors_origins=(origin,)).cors_origins == (origin,)


def test_a_deployment_may_get_other_models() -> None:
    config = ServeConfig(model="a", models={"more": "b"}, aliases={"alias": "more"})
    assert with_models(config, None, None) == config
    rolled = with_models(config, {"embedder": "a2", "third": "c"}, {"alias": "third"})
    assert rolled.folders == {"embedder": "a2", "third": "c"}
    assert rolled.aliases == {"alias": "third"}


@pytest.fixture
def versions(folder: str, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders whose embedders differ."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(folder, first)
    embedder = Embedder.load(folder)
    for parameter in embedder.model.parameters():
        parameter.data = parameter.data * 1.1
    embedder.save(str(second))
    return first, second


def test_a_version_is_that_of_the_files(versions: tuple[Path, Path]) -> None:
    first, second = versions
    before = version_of(str(first))
    assert before != version_of(str(second))
    (first / "log").mkdir()
    (first / "log" / "0.json").write_text("{}")
    (first / "artifact.json").write_text("{}")
    assert version_of(str(first)) == before
    spec = json.loads((first / "embed.json").read_text())
    (first / "embed.json").write_text(json.dumps(spec | {"normalize": False}))
    assert version_of(str(first)) != before


def test_a_file_that_is_written_anew_changes_no_vector_of_a_served_version(versions: tuple[Path, Path], caplog) -> None:
    """The weights are in memory: a file that is cut in place would also end the process."""
    first, second = versions
    with serve_in_process(ServeConfig(model=str(first), port=0)) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        before = client.embeddings.create(model="embedder", input=TEXTS)
        content = (second / "model.safetensors").read_bytes()
        with (first / "model.safetensors").open("r+b") as file:
            file.write(content)
        after = client.embeddings.create(model="embedder", input=TEXTS)
        with (first / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        assert client.embeddings.create(model="embedder", input=TEXTS).model == before.model
    assert after == before


def test_a_model_without_a_main_one_is_served(folder: str) -> None:
    with (
        serve_in_process(ServeConfig(models={"m": folder}, port=0)) as url,
        openai.OpenAI(base_url=url, api_key="none") as client,
    ):
        assert [one.id for one in client.models.list()] == ["m"]
        assert client.embeddings.create(model="m", input="save").model.startswith("m@")


def test_an_alias_is_one_on_every_route(folder: str) -> None:
    with serve_in_process(ServeConfig(model=folder, aliases={"small": "embedder"}, port=0)) as url:
        listed = send(url, "/models")[1]["data"]
        assert listed[1] == send(url, "/models/small")[1]
        assert (listed[1]["id"], listed[1]["root"]) == ("small", "embedder")


def test_several_models_are_served_by_name(versions: tuple[Path, Path]) -> None:
    first, second = map(str, versions)
    config = ServeConfig(model=first, models={"second": second}, aliases={"newest": "second"}, port=0)
    with serve_in_process(config) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        ids = [entry.id for entry in client.models.list()]
        found = {name: np.array([e.embedding for e in client.embeddings.create(model=name, input=TEXTS).data]) for name in ids}
        answer = client.embeddings.create(model="newest", input="save")
    assert ids == ["embedder", "second", "newest"]
    assert answer.model == f"second@{version_of(second)}"
    for name, folder in {"embedder": first, "second": second, "newest": second}.items():
        assert np.abs(found[name] - Embedder.load(folder).encode(TEXTS)).max() < 1e-5
    assert np.abs(found["second"] - found["embedder"]).max() > 1e-3


def test_a_new_version_is_served_without_a_failed_request(versions: tuple[Path, Path]) -> None:
    """Its folder takes the place of the first one's, as when a link is moved; SIGHUP makes the server look."""
    first, second = versions
    link = first.parent / "current"
    link.symlink_to(first)
    config = ServeConfig(model=str(link), port=0)
    body = json.dumps({"model": "embedder", "input": TEXTS}).encode()
    statuses: list[int] = []
    is_over = threading.Event()

    async def ask(url: str) -> None:
        connection = Connection(f"{url}/embeddings")
        while not is_over.is_set():
            statuses.append((await connection.post(body))[0])
        connection.close()

    async def clients(url: str) -> None:
        await asyncio.gather(*[ask(url) for _ in range(8)])

    with serve_in_process(config) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        thread = threading.Thread(target=lambda: asyncio.run(clients(url)))
        thread.start()
        link.unlink()
        link.symlink_to(second)
        os.kill(os.getpid(), signal.SIGHUP)
        wanted = f"embedder@{version_of(str(second))}"
        for _ in range(600):
            answer = client.embeddings.create(model="embedder", input=TEXTS)
            if answer.model == wanted:
                break
            time.sleep(0.05)
        after = len(statuses)
        while len(statuses) < after + 50:
            time.sleep(0.01)
        is_over.set()
        thread.join(30)
    assert answer.model == wanted
    vectors = np.array([entry.embedding for entry in answer.data])
    assert np.abs(vectors - Embedder.load(second).encode(TEXTS)).max() < 1e-5
    assert set(statuses) == {200}


def test_a_reload_keeps_what_has_not_changed_and_what_cannot_be_replaced(versions, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("scion.serve"), "propagate", True)
    first, second = map(str, versions)
    config = ServeConfig(model=first, models={"second": second})
    loader = Loader(config, 1, Prometheus())

    def served() -> dict[str, int]:
        return {name: id(model) for name, model in loader.shelf.models.by_name.items()}

    before = served()
    loader.reload(config)
    assert served() == before
    shutil.rmtree(second)
    with caplog.at_level("ERROR"):
        loader.reload(config)
    assert served() == before
    assert "the models stay as they are" in caplog.text
    loader.reload(with_models(config, {"embedder": first}, None))
    assert served() == {"embedder": before["embedder"]}
    loader.batcher.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("embed.json", "{", "embed.json is not JSON"),
        ("embed.json", '{"polling": "mean"}', r"embed.json cannot be read \(.*'polling'"),
        ("calibration.safetensors", "x", "calibration.safetensors is damaged"),
        ("query_drift.safetensors", "x", "query_drift.safetensors is damaged"),
        ("model.safetensors", "x", "cannot be loaded"),
        ("tokenizer.json", "{", "no tokenizer can be loaded"),
    ],
)
def test_a_damaged_folder_is_named_and_the_old_version_stays(versions, name, content, message, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("scion.serve"), "propagate", True)
    first, _ = versions
    loader = Loader(config := ServeConfig(model=str(first)), 1, Prometheus())
    before = loader.shelf.models
    (first / name).write_text(content)
    with caplog.at_level("ERROR"):
        loader.reload(config)
    assert loader.shelf.models is before
    assert re.search(f"the models stay as they are: .*{message}", caplog.text)
    loader.batcher.close()
    with pytest.raises(ModelError, match=message):
        Loader(config, 1, Prometheus())


def test_a_reload_that_fails_in_any_way_leaves_the_models(versions, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("scion.serve"), "propagate", True)
    first, second = map(str, versions)
    loader = Loader(ServeConfig(model=first), 1, Prometheus())
    before = loader.shelf.models

    def fail(*_: object) -> None:
        raise MemoryError("no room on the GPU")

    monkeypatch.setattr(Embedder, "load_for_inference", fail)
    loader.reload(ServeConfig(model=second))
    assert loader.shelf.models is before
    assert "the models stay as they are: no room on the GPU" in caplog.text
    loader.batcher.close()


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        ({"aliases": {"x": "nowhere"}}, "'x' cannot stand for 'nowhere'"),
        ({"model": {}}, r"user_config\.model: there is no such setting"),
        ({"models": ["x"]}, "user_config: must hold models and aliases"),
        ({"models": {"embedder": 5}}, "the models stay as they are"),
    ],
)
def test_a_wrong_user_config_ends_no_replica(folder, user_config, message, caplog, monkeypatch) -> None:
    """Ray Serve ends a replica whose `reconfigure` raises, and each that it starts in its place."""
    monkeypatch.setattr(logging.getLogger("scion.serve"), "propagate", True)
    replica = EmbedderReplica(ServeConfig(model=folder), ())
    logging.getLogger("scion.serve").propagate = True
    before = replica._loader.shelf.models
    asyncio.run(replica.reconfigure(user_config))
    assert replica._loader.shelf.models is before
    assert re.search(message, caplog.text)
    replica._loader.batcher.close()


@pytest.mark.parametrize(("replicas", "is_waited_for"), [(1, False), (2, True)])
def test_a_replica_that_is_alone_loads_a_model_while_it_answers(folder, replicas, is_waited_for, monkeypatch) -> None:
    """Ray Serve sends a replica no requests while it waits for `reconfigure`."""
    replica = EmbedderReplica(ServeConfig(model=folder, replicas=replicas), ())
    loaded: list[str] = []

    def reload(config: ServeConfig) -> None:
        time.sleep(0.2)
        loaded.append(config.model)

    monkeypatch.setattr(replica._loader, "reload", reload)
    asyncio.run(replica.reconfigure({"models": {"embedder": "first"}}))
    assert loaded == ["first"]  # at the start nobody answers yet
    replica.check_health()
    asyncio.run(replica.reconfigure({"models": {"embedder": "second"}}))
    asyncio.run(replica.reconfigure({"models": {"embedder": "third"}}))
    assert (len(loaded) == 3) is is_waited_for
    replica._reloads.shutdown()
    assert loaded == ["first", "second", "third"]
    replica._loader.batcher.close()


def test_a_vector_that_is_no_number_is_not_given_out(folder: str, embedder: Embedder, tmp_path: Path) -> None:
    """As null in JSON, or 0 in bytes, it would get into an index."""
    broken = Embedder.load(folder)
    word = broken.tokenize(["save"])[0][1]
    broken.model.embeddings.word_embeddings.weight.data[word] = float("nan")
    broken.save(str(tmp_path))
    with serve_in_process(ServeConfig(model=str(tmp_path), port=0)) as url:
        for extra in ({}, {"output_dtype": "uint8"}, {"output_dtype": "binary"}):
            body = {"model": "embedder", "input": ["click", "save"], **extra}
            assert send(url, "/embeddings", json.dumps(body).encode())[0] == 500
        ranking = {"model": "embedder", "query": "click", "documents": ["save", "click"]}
        assert send(url, "/rerank", json.dumps(ranking).encode())[0] == 500
        other = next(row for row in embedder.tokenize(["click", "open", "file", "a"]) if word not in row)
        status, answer = send(url, "/embeddings", json.dumps({"model": "embedder", "input": [other]}).encode())
    assert status == 200
    assert np.abs(np.array(answer["data"][0]["embedding"]) - embedder.encode_ids([other])).max() < 1e-5


def test_a_version_of_another_size_is_timed_anew(versions, english: list[str], tmp_path: Path) -> None:
    """The watchdog and the sizes of passes follow from it: a hundred times larger model is not stuck."""
    first, second = map(str, versions)
    loader = Loader(ServeConfig(model=first), 1, Prometheus())

    def budget() -> Budget:
        """Without the model, for whose end a reload waits."""
        return next(iter(loader.shelf.models.by_name.values())).budget

    before = budget()
    loader.reload(ServeConfig(model=second))
    assert loader.shelf.models.cards[0].version == version_of(second)
    assert budget() is before
    tokenizer = FAMILIES["wordpiece"](english)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 512}
    Embedder(BertModel(BertConfig(**sizes, num_attention_heads=2)), tokenizer, EmbedderSpec(max_length=24)).save(
        str(tmp_path / "large")
    )
    loader.reload(ServeConfig(model=str(tmp_path / "large")))
    assert budget().token_seconds > 2 * before.token_seconds
    loader.batcher.close()


def test_bf16_is_served_with_what_it_costs(folder: str, embedder: Embedder) -> None:
    with serve_in_process(ServeConfig(model=folder, port=0, precision="bf16")) as url:
        with openai.OpenAI(base_url=url, api_key="none") as client:
            answer = client.embeddings.create(model="embedder", input=TEXTS)
        [model] = send(url.removesuffix("/v1"), "/info")[1]["models"]
    vectors, exact = np.array([entry.embedding for entry in answer.data]), embedder.encode(TEXTS)
    assert model["precision"] == "bf16"
    assert 0.98 < model["lowest_cosine"] < 1
    assert (vectors * exact).sum(axis=1).min() > model["lowest_cosine"] - 0.01
    assert np.abs(vectors - exact).max() > 1e-5
    with pytest.raises(ConfigError, match=r"'fp8' is not known\. Choose fp32 or bf16"):
        ServeConfig(precision="fp8")


def test_a_family_that_does_not_compute_in_bf16_is_named(english: list[str], tmp_path: Path) -> None:
    tokenizer = FAMILIES["unigram"](english)
    sizes = {"vocab_size": len(tokenizer), "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}
    Embedder(XLNetModel(XLNetConfig(**sizes)), tokenizer, EmbedderSpec(max_length=24)).save(str(tmp_path))
    with pytest.raises(ConfigError, match=r"serve\.precision: .*does not compute in bf16 .* Set it to fp32"):
        Loader(ServeConfig(model=str(tmp_path), precision="bf16"), 1, Prometheus())


def test_a_model_that_does_not_say_how_it_pools_is_served_with_a_warning(
    folder: str, tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("scion.serve"), "propagate", True)
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("embed.json", "modules.json", "1_Pooling"))
    loader = Loader(ServeConfig(model=str(plain)), 1, Prometheus())
    assert "does not say how it pools" in caplog.text
    caplog.clear()
    loader.reload(ServeConfig(model=folder))
    assert "does not say" not in caplog.text
    [card] = loader.shelf.models.cards
    assert (card.pooling, card.is_normalized) == ("mean", True)
    loader.batcher.close()


def test_aliases_that_a_deployment_gets_later_are_listed() -> None:
    served = Shelf(SERVED)
    asked = TestClient(Front(ServeConfig(aliases={}), served).api())
    assert [one["id"] for one in asked.get("/v1/models").json()["data"]] == ["org/tiny", "old", "text-embedding-3-small"]
    assert asked.get("/v1/models/text-embedding-3-small").json()["root"] == "org/tiny"
    schemas = asked.get("/openapi.json").json()["components"]["schemas"]["Request"]["oneOf"]
    assert schemas[0]["properties"]["model"]["enum"] == ["org/tiny", "org/tiny@a1b2", "text-embedding-3-small"]
    served.models = Models(SERVED.by_name, {"new": "old"})
    assert [one["id"] for one in asked.get("/v1/models").json()["data"]][2] == "new"
