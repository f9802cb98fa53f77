"""Maps a function over jobs in a pool of Ray Data actors, with results in the order of the jobs.

A `ScionError` of a worker is raised on the driver unchanged, without retries: bad input stays bad.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.errors import ScionError

Progress = Callable[[int, int], None]


class _Worker:
    """Calls `setup` once per actor and passes its result to each call of the function."""

    def __init__(self, function: Callable[..., Any], setup: Callable[[], Any] | None) -> None:
        self._function = function
        self._extra = (setup(),) if setup else ()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self._function(pickle.loads(row["job"]), *self._extra)
            return {"number": row["number"], "result": pickle.dumps(result), "error": b""}
        except ScionError as error:
            return {"number": row["number"], "result": b"", "error": pickle.dumps(error)}


def ray_map(
    function: Callable[..., Any],
    jobs: Sequence[Any],
    *,
    actors: int,
    gpus: int = 0,
    setup: Callable[[], Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Any]:
    """`[function(job) for job in jobs]`, or `function(job, setup())` with `setup` called once per actor.

    Args:
        gpus: of an actor.

    Raises:
        ScionError: the first one that a worker raised.
    """
    import ray

    if not jobs:
        return []
    rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_kwargs={"function": function, "setup": setup},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(rows)))),
        num_cpus=0.5,
        num_gpus=gpus,
    )
    results: dict[int, Any] = {}
    for row in mapped.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        results[row["number"]] = pickle.loads(row["result"])
        progress(len(results), len(rows))
    return [results[number] for number in range(len(rows))]
