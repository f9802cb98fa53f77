"""The ranking of `scion compare`: it claims only what follows from the cells."""

import numpy as np
import pytest

from ray_jobs.report import comparison
from ray_jobs.report.comparison import MeanAndSd, compare, flat_curves, monotone_fit, steps_to


def cell(*bits: float, retrieval: float | None = None) -> dict:
    way = {"accuracy_at_1": retrieval}
    scores = None if retrieval is None else {name: {"forward": way, "backward": way} for name in ("before", "after")}
    return {"bits_per_byte": {str(10 * place): value for place, value in enumerate(bits)}, "retrieval": scores}


def test_the_best_is_first_and_methods_within_the_noise_of_the_seeds_share_a_rank() -> None:
    cells = {
        ("random", 0): cell(4.0, 3.0, 2.0),
        ("random", 1): cell(4.2, 3.2, 2.1),
        ("fvt", 0): cell(3.0, 2.0, 1.5),
        ("fvt", 1): cell(3.0, 2.0, 1.6),
        ("focus", 0): cell(3.0, 2.0, 1.52),
        ("focus", 1): cell(3.0, 2.0, 1.62),
    }
    comparison_table = compare(cells)
    assert [(row.rank, row.name) for row in comparison_table.rows] == [(1, "fvt"), (1, "focus"), (3, "random")]
    assert comparison_table.rows[0].final.mean == pytest.approx(1.55)
    assert comparison_table.rows[0].final.sd == pytest.approx(0.1 / 2**0.5)
    assert (comparison_table.steps, comparison_table.seeds) == (20, 2)
    # fvt is at 2.0 after 10 steps, and at 2.1 after 9: 9.5 of 20 steps on average.
    assert comparison_table.rows[0].steps_to_random == MeanAndSd(mean=pytest.approx(9.5), sd=pytest.approx(0.5**0.5))
    assert comparison_table.rows[2].steps_to_random.mean == pytest.approx(20)
    assert comparison.cells(comparison_table, comparison_table.rows[0])[4] == "2.1 x"


def test_a_start_that_never_reaches_the_goal_and_one_that_is_there_at_once() -> None:
    comparison_table = compare({("random", 0): cell(4.0, 2.0), ("a", 0): cell(1.9, 1.0), ("b", 0): cell(4.0, 3.0)})
    assert [comparison.cells(comparison_table, row)[4] for row in comparison_table.rows] == ["at once", "1.0 x", "never"]
    assert comparison_table.rows[2].steps_to_random is None
    without = compare({("a", 0): cell(1.9, 1.0)})
    assert without.rows[0].steps_to_random is None
    assert comparison.cells(without, without.rows[0])[4] == "-"


def test_a_crossing_lies_on_the_line_between_two_points() -> None:
    assert steps_to({0: 4.0, 10: 3.0, 20: 1.0}, 2.0) == pytest.approx(15.0)
    assert steps_to({0: 4.0, 10: 3.0}, 2.0) is None
    assert steps_to({0: 1.0, 10: 3.0}, 2.0) == 0.0


def test_the_control_has_a_speed_up_of_one_even_if_its_curve_is_noisy() -> None:
    """Its curve first reached its own last value at step 18 of 40, so its speed-up over itself was 2.2 x."""
    control = {0: 3.0, 10: 1.5, 18: 1.0, 26: 0.98, 32: 1.02, 40: 1.0}
    faster = {0: 2.0, 10: 0.99, 18: 1.0, 26: 0.9, 32: 0.85, 40: 0.8}
    cells = {("random", 0): cell(), ("fvt", 0): cell()}
    for name, curve in (("random", control), ("fvt", faster)):
        cells[name, 0]["bits_per_byte"] = {str(step): value for step, value in curve.items()}
    comparison_table = compare(cells)
    assert {row.name: comparison.cells(comparison_table, row)[4] for row in comparison_table.rows} == {
        "random": "1.0 x",
        "fvt": "1.8 x",
    }
    assert comparison_table.rows[1].flat_from == 18
    assert comparison_table.rows[0].flat_from is None
    assert flat_curves(comparison_table) == "flat at their end, so steps mean little: random from step 18"
    assert "random from step 18" in comparison.render(comparison_table, {"random": "", "fvt": ""}, "m", "")


def test_a_start_that_gets_there_within_half_a_step_is_not_there_at_once() -> None:
    cells = {("random", 0): cell(), ("fvt", 0): cell()}
    for name, curve in (("random", {0: 1.942, 6: 1.937}), ("fvt", {0: 1.946, 1: 1.9, 6: 1.8})):
        cells[name, 0]["bits_per_byte"] = {str(step): value for step, value in curve.items()}
    comparison_table = compare(cells)
    assert {row.name: comparison.cells(comparison_table, row)[4] for row in comparison_table.rows} == {
        "random": "1.0 x",
        "fvt": "30.7 x",
    }


def test_the_monotone_curve_is_the_nearest_one() -> None:
    """Against scipy's own isotonic regression."""
    from scipy.optimize import isotonic_regression

    random = np.random.default_rng(0)
    for _ in range(50):
        values = np.linspace(3, 1, 12) + random.normal(0, 0.5, 12)
        curve = dict(enumerate(values.tolist()))
        assert np.allclose(list(monotone_fit(curve).values()), isotonic_regression(values, increasing=False).x)


def test_the_page_shows_every_method_and_loads_nothing_from_outside() -> None:
    comparison_table = compare({("random", 0): cell(4.0, 2.0, retrieval=0.1), ("fvt", 0): cell(3.0, 1.0, retrieval=0.75)})
    page = comparison.render(comparison_table, {"random": "a baseline", "fvt": "a paper"}, "some/model", "seed: 0\n")
    assert page == comparison.render(comparison_table, {"random": "a baseline", "fvt": "a paper"}, "some/model", "seed: 0\n")
    for expected in ("fvt", "random", "0.750", "a paper", "some/model", "seed: 0", "data:image/svg+xml"):
        assert expected in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="http' not in page


def test_retrieval_has_columns_only_for_encoders() -> None:
    encoder = compare({("random", 0): cell(2.0, 1.0, retrieval=0.25)})
    assert (encoder.columns[-1], comparison.cells(encoder, encoder.rows[0])[-1]) == ("accuracy@1 after", "0.250")
    decoder = compare({("random", 0): cell(2.0, 1.0)})
    assert (decoder.columns[-1], comparison.cells(decoder, decoder.rows[0])[-1]) == ("speed-up", "1.0 x")
    assert "compared where there are pairs" in comparison.render(decoder, {"random": ""}, "m", "")
