"""Quantised vectors: a byte for each value, by the range of its dimension in sample vectors, or a bit, by its sign.

A byte is round(255 (x - low) / (high - low)), cut to 0 to 255, and low and high are the least and the greatest value of the
dimension (the scalar quantisation of Shakir, Aarsen & Lee 2024, as sentence-transformers has it, but rounded and cut).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError, ModelError, reason

DTYPES = ("float", "int8", "uint8", "binary", "ubinary")
"""float32; a byte for each value; a bit for each value, packed into int8 or uint8."""
BYTES, BITS = ("int8", "uint8"), ("binary", "ubinary")
FILE = "calibration.safetensors"
"""The calibrations of an embedder, in its folder."""
Key = tuple[int, int | None]
"""A width, and the number of layers, None for all."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The range of each dimension."""

    low: NDArray[np.float32]
    """[d]"""
    high: NDArray[np.float32]
    """[d]"""

    def bytes_of(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes [n, d] of vectors [n, d]."""
        scaled = (vectors - self.low) * (np.float32(255) / np.maximum(self.high - self.low, np.float32(1e-12)))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    def vectors(self, values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The vectors [n, d] for which bytes [n, d] stand."""
        return self.low + values.astype(np.float32) * ((self.high - self.low) / np.float32(255))


def fit(vectors: NDArray[np.float32]) -> Calibration:
    """The calibration by sample vectors [n, d]."""
    return Calibration(vectors.min(axis=0), vectors.max(axis=0))


def quantize(vectors: NDArray[np.float32], dtype: str, calibration: Calibration | None = None) -> NDArray[np.generic]:
    """Vectors [n, d] as they are, as bytes [n, d], or as bits [n, d / 8], the first value in the highest bit.

    Raises:
        ConfigError: there is no such type, no calibration for bytes, or d is no multiple of 8 for bits.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"{dtype!r} is not known.", "output_dtype", f"Ask for one of {', '.join(DTYPES)}.")
    if dtype in BYTES:
        if calibration is None:
            fix = "Train it with `scion embed`, which calibrates it, or call Embedder.calibrate."
            raise ConfigError("the embedder is not calibrated at this width and depth.", "output_dtype", fix)
        values = calibration.bytes_of(vectors)
        return values if dtype == "uint8" else _signed(values)
    if dtype in BITS:
        if vectors.shape[1] % 8:
            fix = "Ask for other dimensions, or for float."
            raise ConfigError(f"{vectors.shape[1]} values do not fill whole bytes.", "output_dtype", fix)
        bits = np.packbits(vectors > 0, axis=1)
        return bits if dtype == "ubinary" else _signed(bits)
    return np.ascontiguousarray(vectors)


def _signed(values: NDArray[np.uint8]) -> NDArray[np.int8]:
    return (values.astype(np.int16) - 128).astype(np.int8)


def save(folder: str, calibrations: Mapping[Key, Calibration]) -> None:
    """Writes all calibrations of an embedder to its folder; nothing if there are none."""
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[np.float32]] = {}
    for (width, layers), calibration in calibrations.items():
        name = f"{width}/{layers or 'all'}"
        tensors |= {f"{name}/low": calibration.low, f"{name}/high": calibration.high}
    if tensors:
        save_file(tensors, os.path.join(folder, FILE))


def load(folder: str) -> dict[Key, Calibration]:
    """The calibrations of the embedder in a folder; empty if it has none, ModelError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = os.path.join(folder, FILE)
    if not os.path.exists(path):
        return {}
    calibrations = {}
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{FILE} is damaged ({reason(error)}).", f"model {folder}", "Save the embedder again.") from error
    for name in filter(lambda name: name.endswith("/low"), tensors):
        width, layers, _ = name.split("/")
        key = int(width), None if layers == "all" else int(layers)
        calibrations[key] = Calibration(tensors[name], tensors[name.replace("/low", "/high")])
    return calibrations
