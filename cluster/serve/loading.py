"""Loads the models of a server, at its start and again when their files have changed."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial

import torch

from cluster.serve.batching import Batcher, PassReport
from cluster.serve.config import ServeConfig
from cluster.serve.metrics import Recorder
from cluster.serve.model import ServedModel, version_of
from cluster.serve.models import Models, Shelf
from data_pipeline.errors import ScionError
from data_pipeline.sources.models import model_folder

_log = logging.getLogger("scion.serve")
_FAREWELL_SECONDS = 60.0
"""Time for the last requests of a replaced model."""


class Loader:
    """Keeps the models of a server as their folders are."""

    def __init__(self, config: ServeConfig, threads: int, recorder: Recorder) -> None:
        """Loads the models.

        Args:
            threads: of a forward pass on the CPU.
            recorder: of the metrics of forward passes.

        Raises:
            ModelError: a model cannot be loaded.
            ConfigError: there is no GPU, or a prompt leaves no room for a text.
        """
        torch.set_num_threads(threads)
        self.batcher = Batcher(partial(_record, recorder), partial(recorder.record, "scion_waiting_texts", 0))
        self._held: dict[str, ServedModel] = {}
        self._lock = threading.Lock()
        """One thread loads at a time."""
        try:
            self.shelf = Shelf(self._load(config))
        except BaseException:
            self.batcher.close()
            raise
        _freeze()

    def reload(self, config: ServeConfig) -> None:
        """Replaces the models whose files have changed. What cannot be loaded is logged, and the models stay as they are.

        Requests are answered meanwhile, by the models that they found.
        """
        with self._lock:
            self._reload(config)

    def _reload(self, config: ServeConfig) -> None:
        """Swaps the models, and frees those that are replaced once their last request is answered."""
        before = {id(model): weakref.ref(model) for model in self._held.values()}
        try:
            models = self._load(config)
        except Exception as error:  # ours, and those of files that are damaged or cannot be read
            _log.error("the models stay as they are: %s", error, exc_info=None if isinstance(error, ScionError) else error)
            return
        kept = {id(model) for model in self._held.values()}
        if kept == before.keys() and models.aliases == self.shelf.models.aliases:
            _log.info("nothing has changed: serving %s", ", ".join(card.id for card in models.cards))
            return
        self.shelf.models = models
        del models
        _log.info("serving %s", ", ".join(card.id for card in self.shelf.models.cards))
        replaced = [reference for model, reference in before.items() if model not in kept]
        _wait(lambda: all(reference() is None for reference in replaced), _FAREWELL_SECONDS)
        gc.unfreeze()  # only then the collector finds what the replaced models leave
        _freeze()

    def _load(self, config: ServeConfig) -> Models:
        """All models of the settings; those that are held already and have not changed are taken from there."""
        models = {}
        for name, uri in config.folders.items():
            with model_folder(uri) as folder:
                held = self._held.get(name)
                is_current = held is not None and held.card.version == version_of(folder)
                models[name] = held if held and is_current else ServedModel(name, folder, config, self.batcher, held)
        self._held = models
        return Models(models, config.aliases)


def _freeze() -> None:
    """Spares the collector what is here by now, and stays. To look through it costs every request of that moment 0.2 s."""
    gc.collect()
    gc.freeze()


def _wait(is_over: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.05)


def _record(recorder: Recorder, report: PassReport) -> None:
    recorder.record("scion_pass_seconds", report.seconds)
    recorder.record("scion_pass_texts", report.texts)
    recorder.record("scion_tokens_total", report.tokens)
    recorder.record("scion_padding_tokens_total", report.padding)
    recorder.record("scion_waiting_texts", report.waiting)
