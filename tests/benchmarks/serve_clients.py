"""Clients of an endpoint that compare each vector with the one of the version that its answer names."""

import asyncio
import base64
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.serve.load import Connection, read_answer

NAME = "embedder"
PORT = 8341
URL = f"http://127.0.0.1:{PORT}/v1/embeddings"
REQUEST_SECONDS = 60.0
"""A request without an answer for so long is lost."""
TOLERANCE = 1e-5


@dataclass(slots=True)
class Seen:
    """What the clients of one kind saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Requests without a proper answer, by what they got instead."""
    wrong: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    largest_difference: float = 0.0
    closed_idle: int = 0

    def summary(self) -> dict[str, Any]:
        """Counts, and percentiles of the times in milliseconds."""
        percentiles = np.percentile(self.times, [50, 95, 99]) * 1000 if self.times else [0, 0, 0]
        times = {name: round(float(value), 1) for name, value in zip(("p50", "p95", "p99"), percentiles, strict=True)}
        counts = {"requests": sum(self.statuses.values()), "statuses": dict(self.statuses), "versions": dict(self.versions)}
        lost = {"lost": sum(self.lost.values()), "lost_as": dict(self.lost), "wrong": self.wrong}
        return counts | lost | times | {"closed_idle": self.closed_idle, "largest_difference": self.largest_difference}


def head(length: int) -> bytes:
    lines = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}"
    return f"{lines}\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Questions:
    """Texts, and the vectors that each version gives for them."""

    texts: list[str]
    expected: dict[str, np.ndarray]
    """[texts, D] by version."""

    def body(self, places: list[int]) -> bytes:
        asked = {"model": NAME, "input": [self.texts[place] for place in places], "encoding_format": "base64"}
        return json.dumps(asked).encode()

    def check(self, seen: Seen, places: list[int], status: int, content: bytes) -> None:
        """Notes an answer."""
        seen.statuses[str(status)] += 1
        if status in (429, 503) and content.startswith(b'{"error":{"message"'):
            return
        if status != 200:
            seen.lost[f"{status} {content[:40]!r}"] += 1
            return
        answer = json.loads(content)
        version = answer["model"].partition("@")[2]
        seen.versions[version] += 1
        found = np.stack([np.frombuffer(base64.b64decode(one["embedding"]), np.float32) for one in answer["data"]])
        difference = float(np.abs(found - self.expected[version][places]).max())
        seen.largest_difference = max(seen.largest_difference, difference)
        seen.wrong += difference > TOLERANCE


async def asked(questions: Questions, seen: Seen, connection: Connection, places: list[int]) -> None:
    """Sends a request and notes what comes of it."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            status, content = await connection.post(questions.body(places))
        questions.check(seen, places, status, content)
    except (OSError, asyncio.IncompleteReadError) as error:  # a timeout is an OSError
        connection.close()
        seen.statuses["none"] += 1
        seen.lost[f"{type(error).__name__} {str(error)[:60]}"] += 1


async def arrivals(questions: Questions, seen: Seen, rate: float, seconds: float, seed: int = 0) -> None:
    """Requests of one text at random moments, whether or not earlier ones are answered."""
    rng = np.random.default_rng(seed)
    idle: list[Connection] = []
    ongoing: set[asyncio.Task[None]] = set()

    async def one(moment: float) -> None:
        connection = idle.pop() if idle else Connection(URL)
        await asked(questions, seen, connection, [int(rng.integers(len(questions.texts)))])
        seen.times.append(time.perf_counter() - moment)
        idle.append(connection)

    moment = began = time.perf_counter()
    while (moment := moment + rng.exponential(1 / rate)) < began + seconds:
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        task = asyncio.create_task(one(moment))
        ongoing.add(task)
        task.add_done_callback(ongoing.discard)
    await asyncio.gather(*ongoing)
    for connection in idle:
        seen.closed_idle += connection.closed_idle
        connection.close()


async def leavers(questions: Questions, until: float) -> int:
    """Clients that close their connection without waiting for the answer; their number."""
    count = 0
    while time.perf_counter() < until:
        _, writer = await asyncio.open_connection("127.0.0.1", PORT)
        body = questions.body([count % len(questions.texts)] * 32)
        writer.write(head(len(body)) + body[: len(body) // (1 + count % 2)])  # each second one in the midst of its body
        await asyncio.sleep(0.01 * (count % 20))
        writer.transport.abort() if count % 3 else writer.close()
        count += 1
        await asyncio.sleep(0.2)
    return count


async def slow_ones(questions: Questions, seen: Seen, until: float) -> None:
    """A client that takes seconds to send each body."""
    while time.perf_counter() < until:
        place = [sum(seen.statuses.values()) % len(questions.texts)]
        body = questions.body(place)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(head(len(body)))
            for start in range(0, len(body), len(body) // 5):
                writer.write(body[start : start + len(body) // 5])
                await asyncio.sleep(0.5)
            status, content, _ = await read_answer(reader)
            questions.check(seen, place, status, content)
            writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.statuses["none"] += 1
            seen.lost[type(error).__name__] += 1


async def many_texts(questions: Questions, seen: Seen, until: float) -> None:
    """A client that sends 1,024 texts at a time."""
    connection = Connection(URL)
    while time.perf_counter() < until:
        await asked(questions, seen, connection, [place % len(questions.texts) for place in range(1024)])
        await asyncio.sleep(1)
    connection.close()
