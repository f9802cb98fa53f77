"""Scion from Python: graft a model onto a new language, check it, encode with an embedder, run jobs.

    import scion

    model = scion.transfer("xlm-roberta-base", text="corpus/*.parquet", method="focus")
    scion.verify(model)
    model.save("grafted")
    run = scion.run("conf.yaml", "method=wechsel", output="runs/mine")
    scion.Embedder.load("runs/mine/embed").encode(["..."])

Names are imported when they are first used, so that `import scion` takes milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.artifacts.check_result import CheckResult
    from data_pipeline.errors import ScionError
    from data_pipeline.tokenizers.train import TokenizerConfig
    from ray_jobs.run import Run, run
    from ray_jobs.verify import verify
    from trainer.embedder import Embedder
    from trainer.embedder_spec import EmbedderSpec
    from trainer.evaluation.mteb_encoder import mteb_encoder
    from trainer.transfer.in_process import GraftedModel, transfer
    from trainer.transfer.methods import methods
    from trainer.transfer.plan import Provenance, TransferPlan

__all__ = [
    "CheckResult",
    "Embedder",
    "EmbedderSpec",
    "GraftedModel",
    "Provenance",
    "Run",
    "ScionError",
    "TokenizerConfig",
    "TransferPlan",
    "__version__",
    "methods",
    "mteb_encoder",
    "run",
    "transfer",
    "verify",
]
__version__ = "0.1.0"
_HOMES = {
    "CheckResult": "data_pipeline.artifacts.check_result",
    "Embedder": "trainer.embedder",
    "EmbedderSpec": "trainer.embedder_spec",
    "GraftedModel": "trainer.transfer.in_process",
    "Provenance": "trainer.transfer.plan",
    "Run": "ray_jobs.run",
    "ScionError": "data_pipeline.errors",
    "TokenizerConfig": "data_pipeline.tokenizers.train",
    "TransferPlan": "trainer.transfer.plan",
    "methods": "trainer.transfer.methods",
    "mteb_encoder": "trainer.evaluation.mteb_encoder",
    "run": "ray_jobs.run",
    "transfer": "trainer.transfer.in_process",
    "verify": "ray_jobs.verify",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'scion' has no attribute {name!r}")
    importlib.import_module("ray_jobs")  # sets the environment that Ray reads at its import
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
