"""The settings of `scion manifests`: the image, the machines and the storage of a run on Kubernetes."""

import re
from dataclasses import dataclass

from data_pipeline.errors import ConfigError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti)")
_LEAST_MEBIBYTES = 4096
CLAIM_FOLDER = "/data"
"""Where the pods mount the claim of `kubernetes.claim`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """The pods of a run; only `scion manifests` reads it."""

    job: str = "pipeline"
    """The job to run as a RayJob; `serve` becomes a RayService."""
    image: str = ""
    """The image of all pods, with a digest or a tag: `registry.example/scion@sha256:...`."""
    namespace: str = ""
    """The namespace; that of `kubectl` when not given."""
    nodes: int = 1
    """Machines for training workers or replicas of the endpoint, at most."""
    gpus: int = 8
    """GPUs of a machine; 0 for a run on CPUs."""
    cpus: int = 64
    """CPUs of a machine that its pod takes."""
    memory: str = "512Gi"
    """Memory of a machine that its pod takes, such as 512Gi."""
    secret: str = ""
    """The Secret with credentials of the storage, whose keys become variables of the environment."""
    claim: str = ""
    """A PersistentVolumeClaim that all pods mount at /data, for files that are not on an object store."""

    def __post_init__(self) -> None:
        """ConfigError for a value that cannot be."""
        for key in ("nodes", "cpus"):
            if getattr(self, key) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, key)}.", f"kubernetes.{key}")
        if self.gpus < 0:
            raise ConfigError(f"must be at least 0, got {self.gpus}.", "kubernetes.gpus", "0 is a run on CPUs.")
        if not _MEMORY.fullmatch(self.memory):
            raise ConfigError(f"{self.memory!r} is no amount of memory.", "kubernetes.memory", "Write it as 512Gi.")
        if self.mebibytes < _LEAST_MEBIBYTES:
            fix = f"Ray and a model need {_LEAST_MEBIBYTES // 1024}Gi at least."
            raise ConfigError(f"{self.memory} is too little.", "kubernetes.memory", fix)
        for key in ("namespace", "secret", "claim"):
            if (value := getattr(self, key)) and not _NAME.fullmatch(value):
                fix = "Use lower-case letters, digits and -, at most 63."
                raise ConfigError(f"{value!r} is no name of Kubernetes.", f"kubernetes.{key}", fix)
        if self.image and re.search(r"\s", self.image):
            raise ConfigError(
                f"{self.image!r} is no image.", "kubernetes.image", "Write REGISTRY/NAME@sha256:... or REGISTRY/NAME:TAG."
            )

    @property
    def mebibytes(self) -> int:
        """The memory of a machine in MiB."""
        return int(self.memory[:-2]) * {"Mi": 1, "Gi": 1 << 10, "Ti": 1 << 20}[self.memory[-2:]]
