"""Metrics, request ids, log lines and traces."""

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import promql_parser
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from cluster.serve import batching
from cluster.serve.batching import Batcher, Budget, Encoder, ModelStuck, PassReport
from cluster.serve.config import ServeConfig
from cluster.serve.front import Front
from cluster.serve.grafana import dashboard
from cluster.serve.log import JsonLines
from cluster.serve.metrics import METRICS, Prometheus, RayMetrics
from cluster.serve.protocol import Output, TokenIds
from cluster.serve.request_record import current
from cluster.serve.tracing import Tracing, tracing_from_environment
from tests.serve.test_front import ASK, Stub, client, shelf

MILLISECOND = 1_000_000


def values(asked: TestClient) -> dict[tuple[str, ...], float]:
    """The values of the metrics page, by name and the values of labels in their order."""
    families = text_string_to_metric_families(asked.get("/metrics").text)
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for family in families for s in family.samples}


async def timed(rows: TokenIds, output: Output) -> np.ndarray:
    """Vectors of a model that takes the texts 10 ms after they came, and encodes them in 20 ms."""
    record = current()
    assert record.tokenized is not None
    record.taken, record.encoded = record.tokenized + 0.01, record.tokenized + 0.03
    return np.ones((len(rows), 2), np.float32)


def test_metrics_count_requests_by_route_and_status() -> None:
    asked = client()
    for _ in range(3):
        asked.post("/v1/embeddings", json=ASK | {"input": ["a", "bc"]})
    asked.post("/v1/embeddings", json=ASK | {"input": []})
    asked.get("/v1/models/org/tiny")
    asked.post("/v1/rerank", json={"model": "org/tiny", "query": "a", "documents": ["b"]})
    asked.get("/secret-path")
    seen = values(asked)
    assert seen["scion_requests_total", "org/tiny", "/v1/embeddings", "200"] == 3
    assert seen["scion_requests_total", "", "/v1/embeddings", "400"] == 1
    assert seen["scion_requests_total", "", "/v1/models/{name:path}", "200"] == 1
    assert seen["scion_requests_total", "", "other", "404"] == 1
    assert seen["scion_requests_total", "org/tiny", "/v1/rerank", "200"] == 1
    assert seen["scion_request_texts_sum",] == 8
    assert seen["scion_requests_in_progress",] == 1  # this one
    assert "secret" not in asked.get("/metrics").text


def test_metrics_say_where_the_time_went() -> None:
    asked = client(timed)
    asked.post("/v1/embeddings", json=ASK)
    seen = values(asked)
    assert seen["scion_queue_seconds_sum",] == pytest.approx(0.01)
    assert seen["scion_encode_seconds_sum",] == pytest.approx(0.02)
    assert seen["scion_tokenize_seconds_count",] == 1


def test_the_answer_says_where_the_time_went() -> None:
    timing = client(timed).post("/v1/embeddings", json=ASK).headers["server-timing"]
    durations = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(durations) == ["read", "tokenize", "queue", "encode"]
    assert (durations["queue"], durations["encode"]) == ("10.00", "20.00")
    assert "server-timing" not in client().get("/health").headers


@pytest.mark.parametrize("given", ["job-7", "x" * 128])
def test_a_request_keeps_the_id_of_its_client(given: str) -> None:
    assert client().get("/health", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "ä"])
def test_an_unfit_id_is_replaced(given: str) -> None:
    headers = {"X-Request-ID": given.encode()}
    ids = [client().get("/health", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert len(set(ids)) == 2
    assert all(len(one) == 32 for one in ids)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of the server's log."""
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(JsonLines().format(record))  # type: ignore[method-assign]
    logger, requests = logging.getLogger("scion.serve"), logging.getLogger("scion.serve.requests")
    logger.addHandler(handler)
    requests.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    requests.setLevel(logging.NOTSET)


def test_each_request_is_a_line_of_json(lines: list[str]) -> None:
    client(timed).post("/v1/embeddings", json=ASK | {"input": ["a", "bc"]}, headers={"X-Request-ID": "7"})
    line = json.loads(lines[0])
    assert {key: line[key] for key in ("message", "request_id", "method", "path", "status", "model", "texts", "tokens")} == {
        "message": "request", "request_id": "7", "method": "POST", "path": "/v1/embeddings", "status": 200,
        "model": "org/tiny", "texts": 2, "tokens": 3,
    }  # fmt: skip
    assert line["encode_ms"] == 20.0


def test_an_error_of_the_model_names_its_request(lines: list[str]) -> None:
    async def fail(rows: TokenIds, output: Output) -> np.ndarray:
        raise MemoryError("no room")

    client(fail).post("/v1/embeddings", json=ASK, headers={"X-Request-ID": "8"})
    error, request = map(json.loads, lines)
    assert (error["level"], error["request_id"]) == ("ERROR", "8")
    assert "MemoryError: no room" in error["error"]
    assert request["status"] == 500


def test_a_trace_has_a_span_for_each_phase() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    asked = TestClient(Front(ServeConfig(), shelf(Stub(timed)), tracing=tracing).api())
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    before = time.time_ns()
    asked.post("/v1/embeddings", json=ASK, headers={"traceparent": parent})
    tracing.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /v1/embeddings", "read", "tokenize", "queue", "encode"}
    whole = spans["POST /v1/embeddings"]
    assert whole.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert whole.parent.span_id == 0xB7AD6B7169203331
    assert whole.attributes["http.response.status_code"] == 200
    assert abs(whole.start_time - before) < 1000 * MILLISECOND
    assert spans["encode"].parent.span_id == whole.context.span_id
    assert (spans["encode"].end_time - spans["encode"].start_time) / MILLISECOND == pytest.approx(20, abs=0.01)


def test_a_trace_has_the_time_of_the_clock_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was set, or the machine slept, since the server started."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    asked = TestClient(Front(ServeConfig(), shelf(Stub(timed)), tracing=tracing).api())
    now, hour = time.time_ns, 3600 * 1000 * MILLISECOND
    monkeypatch.setattr(time, "time_ns", lambda: now() + hour)
    asked.post("/v1/embeddings", json=ASK)
    tracing.close()
    for span in exporter.get_finished_spans():
        assert abs(span.start_time - now() - hour) < 5000 * MILLISECOND


def test_traces_are_sent_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing_from_environment() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing_from_environment() is not None


def test_ray_takes_every_metric() -> None:
    recorder = RayMetrics()
    for name, metric in METRICS.items():
        for value in (0, 1, 2.5):
            recorder.record(name, value, *metric.labels)


def test_both_recorders_have_the_same_metrics() -> None:
    page = Prometheus().page().decode()
    assert all(f"# HELP {name} {metric.about}" in page for name, metric in METRICS.items())


def test_a_pass_is_reported_with_its_padding() -> None:
    reports: list[PassReport] = []
    batcher = Batcher(reports.append)
    encoder = Encoder(lambda rows, layers: np.ones((len(rows), 2), np.float32), Budget(overhead=8, most=64))
    batcher.submit(encoder, [[1, 2, 3], [1, 2]]).result()
    batcher.close()
    report = reports[0]
    assert (report.texts, report.tokens, report.padding, report.waiting) == (2, 5, 1, 0)


def test_texts_that_wait_are_counted_until_they_are_taken_or_not_wanted() -> None:
    """Those of the request whose pass runs wait, too; those of clients that have left do not."""
    reports: list[PassReport] = []
    batcher = Batcher(reports.append)
    began, ends = batching.threading.Event(), batching.threading.Event()

    def wait(rows: TokenIds, layers: int | None) -> np.ndarray:
        began.set()
        ends.wait(5)
        return np.ones((len(rows), 2), np.float32)

    encoder = Encoder(wait, Budget(overhead=8, most=64))
    large = batcher.submit(encoder, [[1] * 8] * 20)
    assert began.wait(5)
    left = batcher.submit(encoder, [[2] * 8] * 5)
    ends.set()
    large.result(5)
    left.result(5)
    batcher.submit(encoder, [[1] * 8]).result(5)
    assert reports[0].waiting == 20 - reports[0].texts + 5
    assert reports[-1].waiting == 0
    batcher.close()


def test_no_text_waits_once_all_clients_have_left() -> None:
    waiting: list[int] = []
    batcher = Batcher(lambda report: waiting.append(report.waiting), lambda: waiting.append(0))
    began, ends = batching.threading.Event(), batching.threading.Event()

    def wait(rows: TokenIds, layers: int | None) -> np.ndarray:
        began.set()
        ends.wait(5)
        return np.ones((len(rows), 2), np.float32)

    request = batcher.submit(Encoder(wait, Budget(overhead=8, most=64)), [[1] * 8] * 50)
    assert began.wait(5)
    request.cancel()
    ends.set()
    while not any(waiting) or waiting[-1]:
        time.sleep(0.01)
    batcher.close()


def test_a_pass_lasts_without_those_that_interrupt_it() -> None:
    reports: list[PassReport] = []
    batcher = Batcher(reports.append)

    def encode(rows: TokenIds, layers: int | None) -> np.ndarray:
        time.sleep(0.05)
        if rows[0][0] == 1 and not small:
            small.append(batcher.submit(encoder, [[2]]))
            batcher.encode_small()
        return np.ones((len(rows), 2), np.float32)

    small: list[Future] = []
    encoder = Encoder(encode, Budget(overhead=8, most=64))
    began = time.perf_counter()
    batcher.submit(encoder, [[1] * 8] * 20).result(5)
    wall = time.perf_counter() - began
    batcher.close()
    assert reports[0].tokens == 1
    assert sum(report.seconds for report in reports) <= wall + 0.001


def test_all_requests_of_a_pass_fail_where_one_that_interrupts_it_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_STUCK_SECONDS", 0.2)
    monkeypatch.setattr(batching, "_WATCH_SECONDS", 0.05)
    ends = batching.threading.Event()

    def encode(rows: TokenIds, layers: int | None) -> np.ndarray:
        if rows[0][0] == 1:
            small.append(batcher.submit(encoder, [[2]]))
            batcher.encode_small()
        else:
            ends.wait(5)
        return np.ones((len(rows), 2), np.float32)

    small: list[Future] = []
    batcher, encoder = Batcher(), Encoder(encode, Budget(overhead=8, most=64))
    large = batcher.submit(encoder, [[1] * 8] * 20)
    while not small:
        time.sleep(0.01)
    for future in (large, small[0]):
        with pytest.raises(ModelStuck):
            future.result(timeout=3)
    ends.set()
    batcher.close()


def test_all_requests_of_a_pass_fail_where_a_half_of_it_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_STUCK_SECONDS", 0.5)
    monkeypatch.setattr(batching, "_WATCH_SECONDS", 0.05)
    began, together, ends = (batching.threading.Event() for _ in range(3))

    def encode(rows: TokenIds, layers: int | None) -> np.ndarray:
        if len(rows) > 1:
            raise MemoryError
        if rows[0][0] == 1:
            began.set()
        (together if rows[0][0] == 1 else ends).wait(5)
        return np.ones((len(rows), 2), np.float32)

    batcher, encoder = Batcher(), Encoder(encode, Budget(overhead=8, most=64))
    batcher.submit(encoder, [[1]])
    assert began.wait(5)
    requests = [batcher.submit(encoder, [[2]]) for _ in range(4)]
    together.set()
    for future in requests:
        with pytest.raises(ModelStuck):
            future.result(timeout=3)
    ends.set()
    batcher.close()


def test_a_pass_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_STUCK_SECONDS", 0.2)
    monkeypatch.setattr(batching, "_WATCH_SECONDS", 0.05)
    ends = batching.threading.Event()

    def hang(rows: TokenIds, layers: int | None) -> np.ndarray:
        ends.wait()
        return np.ones((len(rows), 2), np.float32)

    batcher, encoder = Batcher(), Encoder(hang, Budget(overhead=8, most=64))
    running, waiting = batcher.submit(encoder, [[1]]), batcher.submit(encoder, [[2]] * 99)
    for future in (running, waiting):
        with pytest.raises(ModelStuck):
            future.result(timeout=5)
    with pytest.raises(ModelStuck):
        batcher.submit(encoder, [[3]])
    ends.set()
    while batcher.is_stuck:
        time.sleep(0.01)
    assert batcher.submit(encoder, [[4]]).result(timeout=5).shape == (1, 2)
    batcher.close()


def test_a_stuck_server_is_not_healthy() -> None:
    stub = Stub(timed)
    asked = TestClient(Front(ServeConfig(), shelf(stub)).api())
    assert asked.get("/health").status_code == 200
    stub.is_stuck = True
    assert asked.get("/health").status_code == asked.get("/ready").status_code == 503


@pytest.mark.parametrize("prefix", ["", "ray_"])
def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(prefix: str) -> None:
    asked = client(timed)
    asked.post("/v1/embeddings", json=ASK)
    known = {sample.name for family in text_string_to_metric_families(asked.get("/metrics").text) for sample in family.samples}
    queries = [target["expr"] for panel in dashboard(prefix)["panels"] for target in panel["targets"]]
    names = {name for query in queries for name in re.findall(rf"{prefix}scion_\w+", query)}
    assert {name.removeprefix(prefix) for name in names} <= known
    assert len(names) >= 12
    labels = {label for query in queries for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    assert labels == {"le", "route", "model", "status"}
    for query in queries:
        promql_parser.parse(query.replace("$__rate_interval", "1m"))


def test_a_collector_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")
        tracing = tracing_from_environment()
        assert tracing is not None
        api = Front(ServeConfig(), shelf(Stub(timed)), tracing=tracing).api()
        assert TestClient(api).post("/v1/embeddings", json=ASK).status_code == 200
        began = time.monotonic()
        tracing.close()
        assert time.monotonic() - began < 6  # OpenTelemetry itself waits for 10 s
