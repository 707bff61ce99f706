"""The statistics of laws: planted exponents come back, intervals cover, censoring is never filled in, verdicts follow their rule."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.lab.laws import (
    Crossing,
    Slope,
    additive_fit,
    bootstrap_slope,
    crossing,
    judge,
    percentile_interval,
    power_law,
    ranked_median,
    sampled_law,
    slope,
)

X = np.array([8.0, 16.0, 32.0, 64.0])
GRID = np.geomspace(10.0, 1e6, 60)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Crossings


@given(place=st.floats(12.0, 9e5), steep=st.floats(0.1, 3.0), level=st.floats(-5.0, 5.0))
def test_the_crossing_of_a_line_in_log_x_is_exact(place: float, steep: float, level: float) -> None:
    y = level - steep * np.log(GRID / place)
    found = crossing(GRID, y, level)
    assert not found.censored
    assert found.value == found.rank == pytest.approx(place, rel=1e-9)


@given(y=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12), level=st.floats(0.0, 10.0))
def test_the_first_crossing_is_taken_and_ends_are_censored(y: list[float], level: float) -> None:
    x = 2.0 ** np.arange(len(y))
    found = crossing(x, np.array(y), level)
    first = next((i for i, value in enumerate(y) if value <= level), None)
    if first is None:
        assert found == Crossing(float(x[-1]), "above")
        assert found.rank == math.inf
    elif first == 0:
        assert found == Crossing(float(x[0]), "below")
        assert found.rank == -math.inf
    else:
        assert x[first - 1] <= found.value <= x[first] * (1 + 1e-12)
        assert not found.censored


def test_crossings_take_integer_grids_and_infinite_values_and_refuse_nan() -> None:
    assert crossing(np.array([1, 2, 4]), np.array([math.inf, 3.0, 1.0]), 3.0) == Crossing(2.0)
    with pytest.raises(ValueError, match=r"NaN at x = 2"):
        crossing(np.array([1, 2, 4]), np.array([5.0, math.nan, 1.0]), 3.0)
    with pytest.raises(ValueError, match="increasing"):
        crossing(np.array([1, 4, 2]), np.array([5.0, 4.0, 1.0]), 3.0)


# Slopes


@given(a=st.floats(-4.0, 4.0), c=st.floats(1e-3, 1e3))
def test_exact_power_laws_have_exact_slopes(a: float, c: float) -> None:
    y = c * X**a
    assert slope(X, y) == pytest.approx(a, abs=1e-12)
    fit = power_law(X, [np.full(4, value) for value in y], rng=rng(), resamples=20)
    assert fit.interval == pytest.approx((a, a), abs=1e-12)
    assert fit.n == 4


def test_the_slope_is_that_of_polyfit() -> None:
    y = X**1.3 * rng().lognormal(0, 0.5, 4)
    assert slope(X, y) == pytest.approx(np.polyfit(np.log(X), np.log(y), 1)[0], rel=1e-12)


def test_intervals_cover_the_planted_exponent_and_exclude_rivals() -> None:
    random, covered, excluded, widths = rng(1), 0, 0, []
    for _ in range(200):
        draws = [x**1.5 * random.lognormal(0, 0.3, 8) for x in X]
        fit = judge(power_law(X, draws, rng=random, resamples=100), predicted=1.5, rivals=(1.0, 2.0))
        assert fit.interval is not None
        covered += fit.interval[0] <= 1.5 <= fit.interval[1]
        excluded += fit.excludes == (1.0, 2.0)
        widths.append(fit.interval[1] - fit.interval[0])
    assert covered >= 0.88 * 200
    assert excluded >= 0.95 * 200
    # sd of a median of 8 log-normals is about 1.2 * 0.3 / sqrt 8; the slope divides it by the root of sum (u - mean u)^2
    spread = 1.2 * 0.3 / math.sqrt(8) / np.linalg.norm(np.log(X) - np.log(X).mean())
    assert np.median(widths) == pytest.approx(2 * 1.96 * spread, rel=0.35)


def test_whole_curves_are_resampled() -> None:
    """Crossings of the median curve, with an error common to each curve: resampling points would miss it and cover too rarely."""
    random, covered = rng(2), 0
    for _ in range(40):
        draws = [
            (x**2 / GRID) * random.lognormal(0, 0.4, (8, 1)) * random.lognormal(0, 0.05, (8, len(GRID))) for x in X
        ]  # (draws, grid), y = 1 at x^2
        fit = power_law(X, draws, lambda curves: crossing(GRID, np.median(curves, axis=0), 1.0).rank, rng=random, resamples=60)
        assert fit.interval is not None
        covered += fit.interval[0] <= 2.0 <= fit.interval[1]
    assert covered >= 0.88 * 40


def test_one_draw_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 draws"):
        power_law(X, [np.ones(3), np.ones(1), np.ones(3), np.ones(3)], rng=rng())
    with pytest.raises(ValueError, match="distinct positive x"):
        bootstrap_slope([1.0, 1.0, 2.0], np.ones(3), lambda _: np.ones(3), rng=rng(), n=3)


def test_an_x_with_a_single_draw_is_censored() -> None:
    draws = [np.full(3, x**1.5) for x in X]
    law = sampled_law(X, [draws[0], draws[1][:1], *draws[2:]], [ranked_median] * 4, rng=rng(), resamples=20)
    assert law.slope.censored == 1
    assert law.intervals[1] is None
    assert law.slope.interval == pytest.approx((1.5, 1.5))
    assert law.local[2] == pytest.approx(1.5)
    assert all(math.isnan(value) for value in law.local[:2])
    with pytest.raises(ValueError, match=r"4 x with \[3, 0, 3, 3\] draws"):
        sampled_law(X, [draws[0], draws[1][:0], *draws[2:]], [ranked_median] * 4, rng=rng())


def test_the_same_generator_gives_the_same_interval() -> None:
    draws = [x * rng(3).lognormal(0, 0.3, 6) for x in X]
    assert power_law(X, draws, rng=rng(4), resamples=50) == power_law(X, draws, rng=rng(4), resamples=50)
    assert power_law(X, draws, rng=rng(4), resamples=50) != power_law(X, draws, rng=rng(5), resamples=50)


# Censoring


@given(values=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=9), limit=st.floats(0.1, 10.0))
def test_the_median_is_exact_or_censored(values: list[float], limit: float) -> None:
    seen = np.array([math.inf if value > limit else value for value in values])
    found = ranked_median(seen)
    assert found == math.inf or found == np.median(values)
    if np.sum(seen == math.inf) < len(values) / 2:
        assert found == np.median(values)
    elif np.sum(seen == math.inf) > len(values) / 2:
        assert found == math.inf


def test_medians_between_both_ends_and_nan() -> None:
    assert ranked_median(np.array([-math.inf, math.inf])) == math.inf
    assert ranked_median(np.array([-math.inf, -math.inf, 3.0])) == -math.inf
    with pytest.raises(FloatingPointError, match="NaN"):
        ranked_median(np.array([1.0, math.nan, 2.0]))


def test_a_censored_x_leaves_the_fit_and_is_counted() -> None:
    draws = [x**2 * rng(i).lognormal(0, 0.2, 10) for i, x in enumerate(X)]
    whole = power_law(X[:3], draws[:3], rng=rng(7), resamples=100)
    cut = power_law(X, [*draws[:3], np.full(10, math.inf)], rng=rng(7), resamples=100)
    assert (whole.censored, cut.censored) == (0, 1)
    assert cut.exponent == whole.exponent
    assert cut.x == tuple(X[:3])
    assert judge(cut, predicted=2.0).censored == 1


def test_fewer_than_half_censored_changes_nothing_in_the_point_estimate() -> None:
    draws = [x**2 * rng(i).lognormal(0, 0.2, 9) for i, x in enumerate(X)]
    limit = float(np.median(draws[3])) * 1.001
    cut = [*draws[:3], np.where(draws[3] > limit, math.inf, draws[3])]
    seen, whole = power_law(X, cut, rng=rng(), resamples=200), power_law(X, draws, rng=rng(), resamples=200)
    assert seen.exponent == whole.exponent
    assert seen.censored == 0
    assert seen.lost == 0.0  # three x are left when the fourth is missing in a resample


def test_too_few_points_or_too_many_lost_resamples_are_no_fit() -> None:
    draws = [x**2 * rng(i).lognormal(0, 0.2, 9) for i, x in enumerate(X)]
    two = power_law(X, [draws[0], draws[1], np.full(9, math.inf), np.full(9, -math.inf)], rng=rng(), resamples=50)
    assert (two.exponent, two.interval, two.censored) == (None, None, 2)
    limit = float(np.median(draws[2])) * 1.001  # the third x is missing in nearly half of the resamples, and then two are left
    shaky = power_law(X[:3], [*draws[:2], np.where(draws[2] > limit, math.inf, draws[2])], rng=rng(), resamples=200)
    assert (shaky.exponent, shaky.interval, shaky.censored) == (None, None, 0)
    assert 0.25 < shaky.lost < 0.6
    fit = judge(shaky, predicted=2.0, rivals=(1.0,))
    assert (fit.verdict, fit.excludes) == ("NO FIT", ())
    assert fit.as_json()["interval"] is None


@given(values=st.lists(st.floats(-5, 5), min_size=200, max_size=300), data=st.data())
def test_lost_resamples_only_widen(values: list[float], data: st.DataObject) -> None:
    whole, nothing_lost = percentile_interval(np.array(values))
    assert whole is not None
    assert nothing_lost == 0.0
    values.sort()  # so that the lost ones may well be those of one end
    gone = data.draw(st.sets(st.integers(0, len(values) - 1), max_size=12) | st.integers(1, 9).map(lambda k: set(range(k))))
    part, lost = percentile_interval(np.array([math.nan if i in gone else value for i, value in enumerate(values)]))
    assert lost == pytest.approx(len(gone) / len(values))
    if part is None:
        assert lost > 0.02
    else:
        assert lost < 0.03
        assert part[0] <= whole[0] <= whole[1] <= part[1]


def test_nan_in_a_statistic_stops() -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        bootstrap_slope(X, np.array([1.0, 2.0, math.nan, 4.0]), lambda _: X, rng=rng(), n=3)


# Verdicts


@given(
    lo=st.floats(-3, 3),
    width=st.floats(0, 2),
    predicted=st.none() | st.floats(-3, 5),
    rivals=st.lists(st.floats(-3, 5), max_size=3),
    bound=st.none() | st.floats(-3, 5),
)
def test_the_rule_of_the_verdict(lo: float, width: float, predicted: Any, rivals: list[float], bound: Any) -> None:
    hi = lo + width
    fit = judge(Slope(lo, (lo, hi), (), (), 5, 0, 0.0), predicted=predicted, asymptotic=2.0, rivals=rivals, bound=bound)
    assert all((rival in fit.excludes) == (rival < lo or rival > hi) for rival in rivals)
    if predicted is None and bound is None:
        assert fit.verdict == "REPORTED"
    else:
        fits = (predicted is None or lo <= predicted <= hi) and all(not lo <= rival <= hi for rival in rivals)
        under, beyond = bound is None or hi < bound, bound is not None and bound <= lo
        assert fit.verdict == ("FAIL" if beyond or not fits else "PASS" if under else "UNDECIDED")
    entry = fit.as_json()
    assert entry["interval"] == [lo, hi]
    assert {"exponent", "interval", "predicted", "asymptotic", "rivals", "excludes", "n", "censored", "verdict"} <= entry.keys()


# Sums of terms

D, R, L = (axis.ravel() for axis in np.meshgrid([64, 128, 256], [2, 4], [100, 1000, 4000]))
TERMS = {"r2d": R**2 * D, "L": L, "1": np.ones(len(D))}


@given(a=st.floats(0.1, 10), b=st.floats(0.1, 10), c=st.floats(0, 1000))
def test_planted_coefficients_come_back(a: float, b: float, c: float) -> None:
    fit = additive_fit(TERMS, a * R**2 * D + b * L + c)
    assert list(fit.coefficients) == ["r2d", "L", "1"]
    assert fit.coefficients["r2d"] == pytest.approx(a, rel=1e-6)
    assert fit.coefficients["L"] == pytest.approx(b, rel=1e-6)
    assert fit.coefficients["1"] == pytest.approx(c, abs=1e-5 * (a + b + c) * 100)
    assert fit.error is not None
    assert fit.error < 1e-9
    assert (fit.n, fit.censored, fit.intervals) == (len(D), 0, {})


def test_a_term_that_is_absent_gets_zero_not_less() -> None:
    fit = additive_fit(TERMS | {"d2": D**2}, 3.0 * R**2 * D + 2.0 * L - 0.001 * D**2)
    assert fit.coefficients["d2"] == 0.0


def test_additive_intervals_cover_and_censored_points_are_left_out() -> None:
    random, covered = rng(5), 0
    for _ in range(60):
        noise = random.lognormal(0, 0.1, (10, len(D)))
        y = 5.0 * R**2 * D + 2.0 * L
        draws = y * noise
        draws[:, 4] = math.inf
        again = np.stack([np.median(draws[random.integers(0, 10, 10)], axis=0) for _ in range(100)])
        fit = additive_fit({"r2d": TERMS["r2d"], "L": L}, np.median(draws, axis=0), again)
        assert (fit.n, fit.censored) == (len(D) - 1, 1)
        interval = fit.intervals["r2d"]
        assert interval is not None
        covered += interval[0] <= 5.0 <= interval[1]
        assert fit.as_json()["intervals"]["L"] is not None
    assert covered >= 0.88 * 60


def test_additive_fits_without_enough_points_are_empty_and_bad_terms_are_named() -> None:
    fit = additive_fit({"a": np.array([1, 2]), "b": np.array([2, 1])}, np.array([3.0, math.inf]))
    assert (fit.coefficients, fit.error, fit.censored) == ({}, None, 1)
    with pytest.raises(ValueError, match="'zero'"):
        additive_fit({"zero": np.zeros(2)}, np.ones(2))
