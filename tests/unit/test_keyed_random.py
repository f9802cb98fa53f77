"""Random numbers depend on key and counter alone, and have the right distributions."""

import numpy as np
import scipy.stats

from data_pipeline import keyed_random


def test_golden_values() -> None:
    """These must never change: orders, masks and random rows on disk depend on them."""
    assert keyed_random.key("order", 0, "el", 1) == 12222249378116393172
    assert keyed_random.bits(1, np.arange(3)).tolist() == [
        17959770775919153504,
        2659550735229733894,
        186468328385351814,
    ]
    assert keyed_random.uniforms(7, np.arange(2)).tolist() == [0.32610211139569867, 0.4485626107996208]


def test_numbers_are_independent_of_the_others_computed() -> None:
    whole = keyed_random.uniforms(keyed_random.key("a"), np.arange(1000))
    assert whole[[7, 3, 999]].tolist() == keyed_random.uniforms(keyed_random.key("a"), np.array([7, 3, 999])).tolist()


def test_the_borders_between_parts_of_a_key_count() -> None:
    assert keyed_random.key("ab", "c") != keyed_random.key("a", "bc") != keyed_random.key("abc")


def test_uniforms_and_normals_have_their_distributions() -> None:
    for number in range(5):
        key = keyed_random.key("test", number)
        assert scipy.stats.kstest(keyed_random.uniforms(key, np.arange(20_000)), "uniform").pvalue > 1e-4
        assert scipy.stats.kstest(keyed_random.normals(key, np.arange(20_000)), "norm").pvalue > 1e-4


def test_neighbouring_keys_are_independent() -> None:
    first, second = keyed_random.uniforms(10, np.arange(20_000)), keyed_random.uniforms(11, np.arange(20_000))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert not set(keyed_random.bits(10, np.arange(5000)).tolist()) & set(keyed_random.bits(11, np.arange(5000)).tolist())
