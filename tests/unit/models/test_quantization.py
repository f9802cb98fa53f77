"""Vectors of bytes and bits."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.util.quantization import quantize_embeddings

from data_pipeline.errors import ConfigError
from trainer import quantization
from trainer.quantization import Calibration, fit, quantize

RNG = np.random.default_rng(0)
SAMPLE = RNG.normal(size=(500, 24)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_bytes_are_those_of_sentence_transformers_but_rounded(dtype: str) -> None:
    """It drops the fraction where we round, so that ours is never below its value, and at most one above."""
    theirs = quantize_embeddings(SAMPLE[:100], dtype, ranges=np.stack([SAMPLE.min(axis=0), SAMPLE.max(axis=0)]))
    ours = quantize(SAMPLE[:100], dtype, fit(SAMPLE))
    assert ours.dtype == theirs.dtype == dtype
    difference = ours.astype(int) - theirs.astype(int)
    assert set(np.unique(difference)) <= {-1, 0, 1}
    assert 0.4 < (difference != 0).mean() < 0.6


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_bits_are_those_of_sentence_transformers(dtype: str) -> None:
    assert np.array_equal(quantize(SAMPLE, dtype), quantize_embeddings(SAMPLE, dtype))


@given(st.integers(0, 1000))
def test_a_byte_is_off_by_half_a_step_at_most(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(50, 6)).astype(np.float32)
    calibration = fit(vectors)
    back = calibration.vectors(calibration.bytes_of(vectors))
    assert (np.abs(back - vectors) <= (calibration.high - calibration.low) / 510 * 1.001 + 1e-6).all()


def test_values_outside_of_the_ranges_are_cut_and_do_not_wrap_around() -> None:
    calibration = Calibration(np.zeros(2, np.float32), np.ones(2, np.float32))
    far = np.array([[-7.0, 7.0]], np.float32)
    assert quantize(far, "uint8", calibration).tolist() == [[0, 255]]
    assert quantize(far, "int8", calibration).tolist() == [[-128, 127]]


def test_a_dimension_without_a_range_gives_a_number() -> None:
    constant = np.ones((3, 1), np.float32)
    assert quantize(constant, "uint8", fit(constant)).tolist() == [[0]] * 3


@pytest.mark.parametrize(
    ("vectors", "dtype", "message"),
    [
        (SAMPLE, "int4", "'int4' is not known. Ask for one of float, int8"),
        (SAMPLE, "int8", "not calibrated at this width and depth"),
        (SAMPLE[:, :5], "binary", "5 values do not fill whole bytes"),
    ],
)
def test_what_cannot_be_done_is_refused(vectors, dtype, message) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(vectors, dtype)


def test_calibrations_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert quantization.load(str(tmp_path)) == {}
    made = {(24, None): fit(SAMPLE), (8, 2): fit(SAMPLE[:, :8])}
    quantization.save(str(tmp_path), made)
    found = quantization.load(str(tmp_path))
    assert found.keys() == made.keys()
    assert np.array_equal(found[8, 2].high, made[8, 2].high)
