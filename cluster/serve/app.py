"""The Ray Serve application: replicas of an embedder, each with its own HTTP front.

One deployment, not an ingress in front of model replicas: measured side by side, the hop between two processes cost more
than it saved, and both had to load torch. The tokenizer and torch release the GIL, so the front does not block the model.
The price: a single replica answers a request, however large it is.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError
from ray import serve
from starlette.applications import Starlette

from cluster.serve.address import base_url, listen
from cluster.serve.api_keys import read_keys
from cluster.serve.config import ServeConfig, require_model, with_models
from cluster.serve.front import Front
from cluster.serve.loading import Loader
from cluster.serve.log import write_log
from cluster.serve.metrics import RayMetrics
from cluster.serve.tracing import tracing_from_environment
from data_pipeline.errors import ClusterError, ConfigError

_APP = "embedder"
_REPORT_SECONDS = 0.3
"""Time within which Ray reports a failed task."""
_STARTS = 5
"""Replicas that may fail to start in a row. Ray Serve counts one that is killed while it is given another model, too; at the
limit it gives up the update and leaves the application with the replicas that are left."""
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_log, _log_ours = logging.getLogger("ray.serve"), logging.getLogger("scion.serve")


class EmbedderReplica:
    """A replica of the model, with the same front as a server without Ray."""

    def __init__(self, config: ServeConfig, keys: Sequence[str]) -> None:
        write_log(config.request_log)
        self._config, self._loader = config, Loader(config, _cpus(config), recorder := RayMetrics())
        self._reloads = ThreadPoolExecutor(1, thread_name_prefix="reload")
        self._is_asked = False
        """Whether Ray Serve has asked for the health of this replica, which it does before it sends requests."""
        self._front = Front(config, self._loader.shelf, keys or read_keys(), recorder, tracing_from_environment())

    async def reconfigure(self, user_config: dict[str, dict[str, str]]) -> None:
        """Serves other models without a restart; Ray Serve calls it when `user_config` of the deployment changes.

        Meanwhile Ray Serve sends the replica no requests. So one that is alone loads the models in the background. What is
        wrong is logged and never raised: Ray Serve would end the replica, and those that it starts in its place.

        Args:
            user_config: `models`, folders, URIs or hub names by name, and `aliases`, in place of those of the settings.
        """
        reload = asyncio.wrap_future(self._reloads.submit(self._reload, user_config))
        if self._config.replicas > 1 or not self._is_asked:
            await reload

    def _reload(self, user_config: dict[str, dict[str, str]]) -> None:
        try:
            config = _with_user_config(self._config, user_config)
        except ConfigError as error:
            _log_ours.error("the models stay as they are: %s", error)
        else:
            self._loader.reload(config)

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises an error."""
        self._is_asked = True
        if self._loader.batcher.is_stuck:
            raise RuntimeError("a forward pass does not end")

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._front.api()


def build_app(config: ServeConfig, starts: int = _STARTS) -> serve.Application:
    """The application for `serve.run`. Host and port are settings of Serve's proxy, not of the application.

    Args:
        starts: tries to start a replica, until Ray Serve reports that it cannot.

    Raises:
        ConfigError: no model is named.
    """
    require_model(config)
    models = {name: _absolute(folder) for name, folder in config.models.items()}
    config = replace(config, model=_absolute(config.model), models=models, source_tokenizer=_absolute(config.source_tokenizer))
    deployment = serve.deployment(
        serve.ingress()(EmbedderReplica),
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": _cpus(config), "num_gpus": int(config.gpu)},
        max_ongoing_requests=1 << 20,  # the front limits requests, with errors in OpenAI's format
        graceful_shutdown_wait_loop_s=0.2,  # interval of the check that the last answers are sent
        max_constructor_retry_count=starts,
    )
    return deployment.bind(config, read_keys())


def _with_user_config(config: ServeConfig, user_config: Any) -> ServeConfig:
    """The settings with the models and aliases of a deployment's `user_config`; ConfigError if it is wrong."""
    if not isinstance(user_config, dict) or not all(isinstance(value, dict | None) for value in user_config.values()):
        raise ConfigError(f"must hold models and aliases, each by name, got {user_config!r}.", "user_config")
    if unknown := user_config.keys() - {"models", "aliases"}:
        raise ConfigError("there is no such setting.", f"user_config.{min(unknown)}", "Known: models, aliases.")
    return with_models(config, user_config.get("models"), user_config.get("aliases"))


def _absolute(folder: str) -> str:
    """A local folder by its whole path: a replica may start in another one."""
    return os.path.abspath(folder) if os.path.isdir(folder) else folder


def app(args: dict[str, Any]) -> serve.Application:
    """`build_app` for `serve run cluster.serve.app:app model=...` and for the `args:` of a RayService.

    Raises:
        ConfigError: an unknown setting, or an invalid value.
    """
    settings = [setting.name for setting in fields(ServeConfig)]
    for key in args:
        if key not in settings:
            raise ConfigError("there is no such setting.", f"args.{key}", f"Known: {', '.join(settings)}.")
    try:  # from a command line every value is a string
        return build_app(TypeAdapter(ServeConfig).validate_python(args))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['msg']}, got {first['input']!r}.", f"args.{first['loc'][0]}") from error


@contextmanager
def serve_on_ray(config: ServeConfig) -> Iterator[str]:
    """Serves on the initialised Ray cluster while the block runs. Yields the base URL for OpenAI's clients.

    Raises:
        ClusterError: no cluster, one that is too small or serves something already, a port in use, or a model that does not
            load.
        ConfigError: no model is named.
    """
    application = build_app(config, starts=1)  # a model that cannot be loaded is reported at once
    _check_cluster_can_serve(config)
    with listen(config.host, config.port) as listener:  # checked here: Serve's proxy would share its port with another proxy
        port = listener.getsockname()[1]
    with _quiet():
        try:
            http = {"host": config.host, "port": port}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=_QUIET)
            _start(application, config.model)
            yield base_url(config.host, port)
        finally:
            _shut_down()


def _shut_down() -> None:
    """Shuts Serve down quietly: it kills its controller while that shuts down, which Ray would report as a failed task."""
    worker = ray._private.worker
    worker._worker_logs_enabled = False
    try:
        serve.shutdown()
        time.sleep(_REPORT_SECONDS)
    finally:
        worker._worker_logs_enabled = True


def _start(application: serve.Application, model: str) -> None:
    """Deploys the application on Ray Serve and waits until it is ready; ClusterError with the reason if it fails."""
    try:
        serve.run(application, name=_APP, logging_config=_QUIET)
    except RuntimeError as error:
        # The status holds a traceback whose last line is the exception: "data_pipeline.errors.ModelError: ...".
        status = serve.status().applications.get(_APP)
        messages = [deployment.message for deployment in status.deployments.values()] if status else []
        reason = (messages or [str(error)])[0].strip().splitlines()[-1]
        _, ours, message = reason.rpartition("data_pipeline.errors.ModelError: ")
        raise ClusterError(f"the server did not start: {message if ours else reason}", f"serve.model={model}") from error


def _check_cluster_can_serve(config: ServeConfig) -> None:
    """Checks that Ray is initialised, serves nothing yet, and has the CPUs and GPUs of all replicas.

    Raises:
        ClusterError: one of these does not hold.
    """
    if not ray.is_initialized():
        raise ClusterError("Ray is not initialised.", "serve", "Call ray.init() first, or use `scion serve`.")
    if serve.status().proxies:
        fix = "Stop that one with `serve shutdown`, or deploy next to it with `serve deploy`."
        raise ClusterError("this Ray cluster serves something already.", "serve", fix)
    needed = {"CPU": config.replicas * _cpus(config), "GPU": config.replicas * config.gpu}
    have = ray.cluster_resources()
    for kind, count in needed.items():
        if have.get(kind, 0) < count:
            what = f"{config.replicas} copies of the model need {count} {kind}s, the cluster has {have.get(kind, 0):g}."
            raise ClusterError(what, "serve.replicas", "Lower it, or add nodes.")  # Serve itself would wait for ever


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Serve's progress lines in this process; its actors have log settings of their own."""
    level = _log.level
    _log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _log.setLevel(level)


def _cpus(config: ServeConfig) -> int:
    return config.cpus_per_replica or 1
