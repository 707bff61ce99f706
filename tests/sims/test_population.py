"""Population mode: the exact second moment against sampling and against the plain formula, the curves against the predicted spectrum."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.population import (
    RiskTrial,
    SpectrumTrial,
    criterion_curves,
    generator,
    heldout_risk,
    least_m1,
    least_points_law,
    log_grid,
    nested_means,
    retrained_rows,
    risk_grid,
    second_moments,
    spectrum_grid,
)
from tests.oracles import to_numpy
from tests.strategies import generators, seeds
from theory.multi_index import make_link
from theory.spectrum import least_points


def direct_moment(x):
    """The reflected second moment of all points, pair by pair of the formula."""
    n = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x.T @ np.arcsin(np.clip(n @ n.T, -1, 1)) @ x / (2 * math.pi * len(x) ** 2)


@st.composite
def point_sets(draw, max_points=24):
    """(x (M, r), increasing grid up to M) with generic or correlated points."""
    r, m = draw(st.integers(1, 5)), draw(st.integers(1, max_points))
    rng = draw(generators)
    grid = sorted(draw(st.sets(st.integers(1, m), min_size=1)) | {m})
    mix = draw(st.sampled_from(["isotropic", "mixed"]))
    x = rng.standard_normal((m, r))
    return (x if mix == "isotropic" else x @ rng.standard_normal((r, r))), grid


@given(point_sets(), st.integers(1, 9))
def test_the_nested_moments_are_the_direct_ones(xp, case, block):
    x, grid = case
    moments = to_numpy(second_moments(xp.asarray(x), grid, block=block))
    # A self-pair has arcsin 1, which the plain formula knows to sqrt(eps) only.
    for m, moment in zip(grid, moments, strict=True):
        np.testing.assert_allclose(moment, direct_moment(x[:m]), rtol=0, atol=1e-7 * np.sum(x[:m] ** 2) / m)


@given(point_sets())
def test_the_nested_means_are_the_direct_ones(xp, case):
    x, grid = case
    signs = np.where(np.random.default_rng(0).integers(0, 2, (3, len(x))) == 1, 1.0, -1.0)
    means = to_numpy(nested_means(xp.asarray(x), grid, xp.asarray(signs)))
    for k, m in enumerate(grid):
        np.testing.assert_allclose(means[:, k], signs[:, :m] @ x[:m] / m, atol=1e-12)


@given(point_sets(max_points=8), seeds)
def test_reflected_rows_are_those_of_points_and_mirror_images(xp, case, seed):
    x, grid = case
    u = np.random.default_rng(seed).standard_normal((5, x.shape[1]))
    rows = retrained_rows(xp.asarray(x), grid, xp.asarray(u))
    for k, m in enumerate(grid):
        both = np.concatenate([x[:m], -x[:m]])
        for name, points in (("plain", x[:m]), ("reflected", both)):
            np.testing.assert_allclose(to_numpy(rows[name])[:, k], (u @ points.T >= 0) @ points / len(points), atol=1e-12)


@given(point_sets(max_points=8), seeds)
def test_second_moments_are_those_of_sampled_neurons(case, seed):
    """E[F F^T] over L directions, plain and reflected, entry by entry in standard errors."""
    x, _ = case
    m = len(x)
    rows = retrained_rows(x, [m], np.random.default_rng(seed).standard_normal((20_000, x.shape[1])))
    reflected = to_numpy(second_moments(x, [m]))[0]
    mean = x.mean(axis=0)
    for name, exact in (("plain", reflected + np.outer(mean, mean) / 4), ("reflected", reflected)):
        products = rows[name][:, 0, :, None] * rows[name][:, 0, None, :]
        error = products.std(axis=0) / math.sqrt(len(products))
        assert np.all(np.abs(products.mean(axis=0) - exact) <= 6 * error + 1e-9 * np.sum(x**2))


@given(point_sets(), seeds)
def test_the_reflected_moment_does_not_see_signs(case, seed):
    """What lets one draw of the points stand for many draws of their mean."""
    x, grid = case
    signs = np.where(np.random.default_rng(seed).integers(0, 2, (len(x), 1)) == 1, 1.0, -1.0)
    np.testing.assert_allclose(second_moments(signs * x, grid), second_moments(x, grid), rtol=1e-9, atol=1e-12)


def test_single_precision_is_enough():
    grid, rng = (60, 150, 400), generator(0, 16, 0)
    x, signs = rng.standard_normal((400, 16)), np.where(rng.integers(0, 2, (4, 400)) == 1, 1.0, -1.0)
    double = criterion_curves(x, grid, signs)
    single = criterion_curves(x.astype(np.float32), grid, signs.astype(np.float32))
    for name, values in double.items():
        np.testing.assert_allclose(single[name], values, rtol=2e-5)


@pytest.mark.gpu
def test_cupy_gives_the_numbers_of_numpy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    if not cupy.is_available():
        pytest.skip("no CUDA device for CuPy")
    trial = SpectrumTrial(16, 0, spectrum_grid(16), dtype="float64")
    here, there = trial.run(), trial.run(cupy)
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-9)


@pytest.fixture(scope="module")
def measured():
    """r -> (grid, curves of every criterion), 120 draws at r = 8 and 60 at r = 16."""
    out = {}
    for r, draws in ((8, 120), (16, 60)):
        grid = spectrum_grid(r)
        rows = [SpectrumTrial(r, k, grid, seed=5).run() for k in range(draws)]
        out[r] = grid, {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return out


@pytest.mark.parametrize(("name", "threshold"), [("common_mode", 3.0), ("conditioning", 10.0), ("reflected", 10.0)])
@pytest.mark.parametrize("r", [8, 16])
def test_measured_least_points_are_the_predicted_ones(measured, r, name, threshold):
    """Within four standard errors (resampled draws) and the 2 % that the prediction is good for."""
    grid, curves = measured[r]
    found = least_m1(grid, curves[name], threshold)
    assert not found.censored
    rng, count = np.random.default_rng(0), len(curves[name])
    again = [least_m1(grid, curves[name][rng.integers(0, count, count)], threshold).value for _ in range(200)]
    error = float(np.std(np.log(again)))
    assert error < 0.06
    assert abs(math.log(found.value / least_points(r, name, threshold))) < 4 * error + 0.02
    # Negative control: the neighbouring criterion's prediction is far outside.
    assert abs(math.log(found.value / least_points(2 * r, name, threshold))) > 8 * error + 0.02


def test_the_first_row_of_signs_is_the_draw_itself():
    trial = SpectrumTrial(4, 3, (20, 40), signs=1, dtype="float64")
    x = generator(0, 4, 3).standard_normal((40, 4))
    for k, m in enumerate(trial.grid):
        values = np.linalg.eigvalsh(direct_moment(x[:m]) + np.outer(x[:m].mean(0), x[:m].mean(0)) / 4)
        assert trial.run()["conditioning"][k] == pytest.approx(values[-1] / values[0], rel=1e-5)


def test_a_link_with_proportional_hessian_changes_nothing_and_another_spreads_the_spectrum():
    """Quadratic link: A^2 is a multiple of the identity. Cross terms: the infinite set itself has the spectrum of A^2."""
    grid, draws = (400, 4000), range(6)
    plain, quadratic, cross = (
        np.median([SpectrumTrial(4, k, grid, link=link).run()["reflected"] for k in draws], axis=0) for link in (None, "quadratic", "cross")
    )
    assert quadratic[-1] == pytest.approx(plain[-1], rel=0.15)
    a = make_link("cross", 4).hessian
    u = np.random.default_rng(0).standard_normal((40_000, 4))
    rows = u @ a @ a / np.linalg.norm(u @ a, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(rows.T @ rows)
    assert cross[-1] == pytest.approx(values[-1] / values[0], rel=0.15)
    assert cross[-1] > 1.5 * plain[-1]


@given(st.floats(1, 50), st.floats(1.5, 100), st.floats(1.05, 2))
def test_grids_reach_both_ends_in_steps_of_the_ratio(low, factor, ratio):
    grid = np.array(log_grid(low, low * factor, ratio))
    assert grid[0] <= low
    assert grid[-1] >= low * factor
    assert np.all(np.diff(grid) > 0)
    assert np.all((grid[1:] - 1) <= ratio * (grid[:-1] + 1))


def test_an_exact_power_law_is_recovered_with_its_interval():
    """Curves with M* = 5 r^1.5 and lognormal noise common to a curve; a curve that never arrives is censored, not dropped silently."""
    rng, rs = np.random.default_rng(3), (4, 8, 16, 32)
    grids = [log_grid(5 * r**1.5 / 4, 5 * r**1.5 * 4, 1.2) for r in rs]
    curves = [3 * 5 * r**1.5 * np.exp(0.2 * rng.standard_normal((40, 1))) / np.array(grid) for r, grid in zip(rs, grids, strict=True)]
    law = least_points_law(rs, grids, curves, 3.0, rng, resamples=300)
    assert law.slope.exponent is not None
    assert law.slope.interval is not None
    assert law.slope.interval[0] < 1.5 < law.slope.interval[1]
    assert law.slope.interval[1] - law.slope.interval[0] < 0.2
    assert all(lo <= m <= hi for m, (lo, hi) in zip(law.y, law.intervals, strict=True))
    assert all(lo <= a <= hi for a, (lo, hi) in zip(law.local, law.local_intervals, strict=True))
    late = least_points_law(rs, grids, [*curves[:3], 1e3 * curves[3]], 3.0, rng, resamples=50)
    assert late.slope.censored == 1
    assert late.y[3] == math.inf
    assert late.intervals[3] is None
    assert late.local_intervals[2] is None


def test_risk_falls_to_the_limit_of_many_points_and_needs_r_of_them():
    grid = (1, 2, 8, 60, 2000)
    rows = [RiskTrial(4, k, grid, width_per_r2=6, test=2000).run() for k in range(6)]
    curves = {name: np.median([row[name] for row in rows], axis=0) for name in ("plain", "reflected")}
    teacher, limit = (np.median([row[name] for row in rows]) for name in ("teacher", "limit"))
    assert 0.5 < limit / teacher < 1.5
    for values in curves.values():
        assert values[-1] == pytest.approx(limit, rel=0.35)
        assert values[-1] < 0.5 * values[2]
        # The rows lie in the span of the points: of He_2 terms of one size, M1 points can explain at most a share M1 / r.
        for m in (1, 2):
            assert values[m - 1] > 1 - m / 4 - 0.05


def test_risk_of_a_linear_target_is_found_by_the_ridge_head():
    """Features that contain the target: no ridge is best without noise, and the chosen ridge is the one of least held-out error."""
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((n, 3)) for n in (60, 30, 200)]
    beta = np.array([1.0, -2.0, 0.5])
    assert heldout_risk(sets, [z @ beta for z in sets], (1e-10, 1.0)) < 1e-15
    noisy = [z @ beta + 5 * rng.standard_normal(len(z)) for z in sets[:2]] + [sets[2] @ beta]
    both = [heldout_risk(sets, noisy, (ridge,)) for ridge in (1e-10, 3.0)]
    assert heldout_risk(sets, noisy, (1e-10, 3.0)) in both


def test_trials_depend_on_their_seed_alone():
    first, again, other = (SpectrumTrial(8, draw, (30, 60)).run() for draw in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) and not np.array_equal(first[name], other[name]) for name in first)
    risk, same = (RiskTrial(3, 0, (6, 12), test=200).run() for _ in range(2))
    assert risk == same
    # Nested: a longer grid leaves the shared sizes as they are.
    short = RiskTrial(3, 0, (6,), test=200).run()
    assert short["teacher"] == risk["teacher"]
    assert short["plain"][0] == pytest.approx(risk["plain"][0], rel=1e-9)


def test_bad_input_is_refused():
    x = np.ones((5, 2))
    with pytest.raises(ValueError, match="must increase"):
        second_moments(x, (4, 2))
    with pytest.raises(ValueError, match="the 5 points drawn"):
        second_moments(x, (2, 6))
    with pytest.raises(FloatingPointError, match="zero or not finite"):
        second_moments(np.zeros((3, 2)), (3,))
    with pytest.raises(ValueError, match="r=1"):
        SpectrumTrial(1, 0, (4, 8))
    with pytest.raises(ValueError, match="test > 0: test=0"):
        RiskTrial(4, 0, risk_grid(4), test=0)
    with pytest.raises(ValueError, match="positive ridges"):
        RiskTrial(4, 0, risk_grid(4), ridges=(0.0,))
    for trial in (RiskTrial, SpectrumTrial):
        with pytest.raises(ValueError, match="link 'odd' has expected Hessian 0"):
            trial(3, 0, (6, 12), link="odd")
    with pytest.raises(ValueError, match="low < high"):
        log_grid(5, 5, 1.2)
