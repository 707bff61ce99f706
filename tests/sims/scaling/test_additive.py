"""Which formula fits the floats."""

from typing import Any

import numpy as np
import pytest

from sims.scaling.additive import LEADING, fit_floats

GRID = [(d, r, width) for d in (16, 32, 64, 128) for r in (2, 3, 4, 6) for width in (64, 256)]


def floats(leading: str, spread: float = 0.03, power: float = 0.0) -> Any:
    """(best, table) of floats* = 2 x the leading term x (log d)^power + 0.5 L + 10 at every task of GRID, with log-normal errors."""
    d, r, width = (np.array([task[k] for task in GRID], float) for k in range(3))
    exact = 2 * LEADING[leading](r, d) * np.log(d) ** power + 0.5 * width + 10
    noise = np.exp(spread * np.random.default_rng(0).standard_normal((41, len(GRID))))
    return exact * noise[0], exact * noise[1:] * noise[0]


def test_the_law_excludes_its_rivals_and_finds_no_logarithm():
    found = fit_floats(GRID, *floats("r^2 d"))
    assert {rival.term for rival in found.rivals} == set(LEADING) - {"r^2 d"}
    assert all(rival.excluded for rival in found.rivals)
    assert found.log_interval[0] - 0.26 <= 0 <= found.log_interval[1] + 0.26
    for (d, r), (width, interval) in found.break_even.items():
        assert width == pytest.approx((2 * r * r * d + 10) / (d + 1.5), rel=0.1)
        assert interval[0] <= width * 1.05
        assert width <= interval[1] * 1.05


@pytest.mark.parametrize("leading", ["r d", "r^3 d", "r^2 d^2", "r^2 d log r"])
def test_another_true_formula_fits_better_than_the_law(leading):
    rivals = {rival.term: rival for rival in fit_floats(GRID, *floats(leading)).rivals}
    assert not rivals[leading].excluded
    assert rivals[leading].interval[1] < 0


def test_a_planted_logarithm_is_found():
    found = fit_floats(GRID, *floats("r^2 d", 0.01, 1.0))
    assert found.log_power == pytest.approx(1, abs=0.3)
    assert not next(rival for rival in found.rivals if rival.term == "r^2 d log d").excluded


def test_floats_that_are_never_reached_have_no_fit():
    nothing = np.full(len(GRID), np.inf)
    found = fit_floats(GRID, nothing, np.tile(nothing, (3, 1)))
    assert (found.rivals, found.log_power, found.break_even) == ((), None, {})
