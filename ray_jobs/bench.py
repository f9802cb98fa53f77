"""`scion bench URL`: an endpoint under load, ours or any that speaks OpenAI's protocol."""

import asyncio
import dataclasses
import json
import os
import random
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from cluster.serve.load import Measured, closed_loop, open_loop
from data_pipeline.errors import ClusterError, ConfigError, DataError
from ray_jobs.job import Command

COMMAND = Command(
    arguments="URL [texts=FILE] [clients=[1,8,32]] [rate=R] [batch=1] [seconds=5] [model=NAME] [request={KEY: VALUE}]",
    summary="an endpoint under load: requests/s and times",
)
KEYS = ("SCION_API_KEY", "OPENAI_API_KEY")
"""Environment variables of which the first one that is set holds the API key."""
_WORDS = (
    "open save close print copy file window table page text word line cell image link name field value date number button menu "
    "key list index style color border column row chart formula search replace find next previous"
)
_SHORT, _LONG, _LONG_SHARE = 6, 90, 0.2
"""Words of a short and of a long text, and how many are long, where no file is given."""
_TEXTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What `scion bench` sends."""

    texts: str = ""
    """A text file, a text a line; without it four fifths have six English words, and a fifth ninety."""
    clients: tuple[int, ...] = (1, 8, 32)
    """Clients at a time that each wait for an answer, one measurement for each."""
    rate: float | None = None
    """Requests/s that arrive at random, whether or not earlier ones are answered, in place of clients."""
    batch: int = 1
    """Texts of a request."""
    seconds: float = 5.0
    """Time of a measurement; a warm-up of a fifth of it comes first."""
    model: str = ""
    """The `model` of requests; the endpoint's first one when not given."""
    request: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More keys of a request, such as {dimensions: 64}."""


def command(arguments: list[str], console: Console) -> None:
    """Measures the endpoint and prints a table, then one JSON object.

    Raises:
        ConfigError: the arguments are not those of `COMMAND`.
        DataError: the file has no text.
        ClusterError: the endpoint does not answer, or refuses the requests.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError("the endpoint is missing.", "scion bench", f"Usage: scion bench {COMMAND.arguments}")
    url, load = arguments[0].rstrip("/").removesuffix("/embeddings"), _load(arguments[1:])
    key = next(filter(None, map(os.environ.get, KEYS)), None)
    model = load.model or _first_model(url, key)
    bodies = _bodies(load, model)
    _answer(f"{url}/embeddings", bodies[0], key)  # a mistake is shown as the endpoint words it
    found = asyncio.run(_measure(f"{url}/embeddings", bodies, load, key))
    console.print(_table(f"{model} at {url}, {load.batch} text{'s' * (load.batch > 1)} a request", found))
    print(json.dumps({name: dataclasses.asdict(measured) for name, measured in found.items()}))


def _load(arguments: list[str]) -> Load:
    """The settings of the command line; ConfigError for one that is unknown or wrong."""
    arguments = [f"clients=[{one.removeprefix('clients=')}]" if _is_one_count(one) else one for one in arguments]
    try:
        load = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Load), OmegaConf.from_dotlist(arguments)))
    except OmegaConfBaseException as error:
        fix = f"Usage: scion bench {COMMAND.arguments}"
        raise ConfigError(str(error).splitlines()[0], "scion bench", fix) from error
    assert isinstance(load, Load)
    rate = 1.0 if load.rate is None else load.rate
    numbers = {"batch": load.batch, "seconds": load.seconds, "rate": rate, "clients": min(load.clients, default=0)}
    for key, value in numbers.items():
        if value <= 0:
            raise ConfigError(f"must be above 0, got {value:g}.", key, "Correct it, or leave it out.")
    if load.rate is not None and load.rate * load.seconds < 1:
        raise ConfigError(f"at {load.rate:g} requests/s none arrives in {load.seconds:g} s.", "seconds", "Raise it.")
    if load.rate is not None and any(one.startswith("clients=") for one in arguments):
        raise ConfigError("a rate has no number of clients.", "rate", "Leave one of rate and clients out.")
    return load


def _is_one_count(argument: str) -> bool:
    return argument.startswith("clients=") and argument.removeprefix("clients=").isdigit()


def _bodies(load: Load, model: str) -> list[bytes]:
    """Requests, so many that texts do not repeat soon."""
    texts = _random_texts() if not load.texts else _lines(load.texts)
    rows = [[texts[(start + n) % len(texts)] for n in range(load.batch)] for start in range(0, len(texts), load.batch)]
    return [json.dumps({"model": model, "input": row, **load.request}).encode() for row in rows]


def _random_texts() -> list[str]:
    rng = random.Random(0)
    lengths = rng.choices((_SHORT, _LONG), (1 - _LONG_SHARE, _LONG_SHARE), k=_TEXTS)
    return [" ".join(rng.choices(_WORDS.split(), k=length)) for length in lengths]


def _lines(path: str) -> list[str]:
    """The texts of a file; DataError if there are none."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}).", path, "Name a UTF-8 file with a text a line.") from error
    if not lines:
        raise DataError("has no text.", path, "Name a UTF-8 file with a text a line.")
    return lines


def _first_model(url: str, key: str | None) -> str:
    """The name of the first model that the endpoint lists; ClusterError if it lists none."""
    try:
        return str(json.loads(_answer(f"{url}/models", None, key))["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise ClusterError("/models lists no model as OpenAI's does.", url, "Check the URL, or give model=NAME.") from error


def _answer(url: str, body: bytes | None, key: str | None) -> bytes:
    """The body of an answer; ClusterError with what the endpoint says if it is none of status 200."""
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace")
        fix = f"Set {' or '.join(KEYS)} in the environment." if error.code == 401 else "Correct the request."
        raise ClusterError(f"the endpoint answers {error.code}: {said}", url, fix) from error
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"there is no answer ({error}).", url, "Give the base URL, such as http://127.0.0.1:8000/v1."
        ) from error


async def _measure(url: str, bodies: list[bytes], load: Load, key: str | None) -> dict[str, Measured]:
    """One measurement for each number of clients, or one at the rate."""
    await closed_loop(url, bodies, 8, load.seconds / 5, key)
    if load.rate is not None:
        return {f"{load.rate:g} requests/s": await open_loop(url, bodies, load.rate, load.seconds, key)}
    return {f"{n} client{'s' * (n > 1)}": await closed_loop(url, bodies, n, load.seconds, key) for n in load.clients}


def _table(title: str, found: dict[str, Measured]) -> Table:
    table = Table("load", "requests", "errors", "requests/s", "p50 ms", "p95 ms", "p99 ms", title=title)
    for name, one in found.items():
        values = (one.requests, one.errors, one.per_second, one.p50, one.p95, one.p99)
        table.add_row(name, *(f"{value:,}" for value in values))
    return table
