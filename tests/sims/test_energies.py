"""Energies of teacher rows and distilled points against theory.predictions, on a grid of (d, N/d^2).

Each prediction is held against the ratio of mean energies over independent tasks, within three jackknife standard errors, and the
standard errors are held under 3 % of the prediction, so that an error of 10 % cannot pass.
"""

import math
from functools import cache

import numpy as np
import pytest

from sims import two_phase
from sims.arrays import GaussianStream
from sims.lab.laws import power_law
from sims.student import Student
from theory import predictions
from theory.multi_index import draw_model, make_link

DIMENSIONS = (16, 24, 36)
SAMPLES = (1, 4, 16)
R = 2
POINTS = 48
TASKS = {16: 300, 24: 240, 36: 170}


def width(d: int) -> int:
    """L with K = L / 2 = 8 d distinct rows: the points' common part is then small enough for 3 % with this many tasks."""
    return 16 * d


def energies(v: np.ndarray, index: np.ndarray) -> tuple[float, float]:
    """Mean squared norms (on S*, off S*) over rows."""
    on = float(np.mean(np.sum((v @ index) ** 2, axis=1)))
    return on, float(np.mean(np.sum(v * v, axis=1))) - on


@cache
def simulate(link: str, d: int, per_d2: int, preprocessing: str, count: int) -> dict[str, np.ndarray]:
    """(tasks, 2) energies of teacher rows, of points at finite K through the matching step, and of points in the kernel limit."""
    out: dict[str, list[tuple[float, float]]] = {"rows": [], "points": [], "kernel": []}
    for task in range(count):
        seeds = np.random.SeedSequence(0, spawn_key=(d, per_d2, task)).spawn(3)
        rng = np.random.default_rng(seeds[0])
        model = draw_model(d, R, link, rng)
        stream = GaussianStream(seeds[1], per_d2 * d * d, d)
        residual = two_phase.fit_residual(model, stream, preprocessing)
        student = Student(d, width(d))
        theta = student.init(rng)
        rows = two_phase.teacher_rows(model, stream, residual, theta[1][: width(d) // 2])
        x = rng.standard_normal((POINTS, d))
        gradient = two_phase.matching_gradient(student, [theta], rows, x, "inner_product")
        out["rows"].append(energies(rows, model.B))
        out["points"].append(energies(-gradient * POINTS / width(d), model.B))
        out["kernel"].append(energies(kernel_points(model, stream, residual, x), model.B))
    return {name: np.array(values) for name, values in out.items()}


def kernel_points(model, stream, residual, x) -> np.ndarray:
    """D(x) = (1/N) sum_n y_n x_n kappa_0(x_n, x): the points at K = infinity."""
    total = np.zeros_like(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for z, xi in stream:
        cosine = np.clip(z @ unit.T / np.linalg.norm(z, axis=1, keepdims=True), -1.0, 1.0)
        weight = (0.25 + np.arcsin(cosine) / (2 * math.pi)) * residual(z, model.labels(z, xi))[:, None]
        total += weight.T @ z
    return total / stream.n


def fraction_and_error(samples: np.ndarray) -> tuple[float, float]:
    """Off-subspace share of the total energy, and its jackknife standard error over tasks."""
    on, off = samples.T
    n = len(on)
    left_out = (off.sum() - off) / (samples.sum() - samples.sum(axis=1))
    return float(off.sum() / samples.sum()), math.sqrt((n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)))


def predicted(name: str, link, d: int, n: int, preprocessing: str) -> predictions.Energy:
    if name == "rows":
        return predictions.teacher_rows(link, 0.0, d, n, preprocessing)
    return predictions.distilled_points(link, 0.0, d, n, width(d) // 2 if name == "points" else None, preprocessing)


@pytest.mark.parametrize("per_d2", SAMPLES)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_off_subspace_energy_after_least_squares(d: int, per_d2: int) -> None:
    link = draw_model(d, R, "cubic-plus", np.random.default_rng(0)).link
    for name, samples in simulate("cubic-plus", d, per_d2, "ols", TASKS[d]).items():
        measured, error = fraction_and_error(samples)
        expected = predicted(name, link, d, per_d2 * d * d, "ols").fraction
        assert error <= 0.03 * expected, f"{name}: standard error {error / expected:.1%} of the prediction"
        assert abs(measured - expected) <= 3 * error, f"{name}: measured {measured:.4f} +- {error:.4f}, predicted {expected:.4f}"


def test_energies_themselves_not_only_their_ratio() -> None:
    """A common wrong factor on both energies would cancel in the fraction."""
    d, per_d2 = 24, 16
    link = draw_model(d, R, "cubic-plus", np.random.default_rng(0)).link
    for name, samples in simulate("cubic-plus", d, per_d2, "ols", TASKS[d]).items():
        expected = predicted(name, link, d, per_d2 * d * d, "ols")
        error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(axis=0) - (expected.on, expected.off)) <= 3.5 * error), name


@pytest.mark.parametrize("link_name", ["quadratic", "cubic-plus"])
def test_row_noise_on_and_off_the_subspace(link_name: str) -> None:
    """The noise alone, which the energies above see only as a small share: per-sample second moments of y (x (G - 1/2) - w/sqrt(2 pi))."""
    d, samples, total = 12, 200_000, []
    link = make_link(link_name, R)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.standard_normal((samples // 20, d))
        w = rng.standard_normal((samples // 20, d))
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        gate = (np.sum(w * x, axis=1) >= 0) - 0.5
        psi = link(x[:, :R])[:, None] * (x * gate[:, None] - w / math.sqrt(2 * math.pi))
        total.append(psi**2)
    squares = np.concatenate(total)
    n = 10**9
    expected = predictions.row_noise(link, 0.0, d, n)
    for measured, value in ((squares[:, :R], expected.on), (squares[:, R:], expected.off)):
        draws = measured.sum(axis=1)
        error = float(draws.std()) / math.sqrt(samples)
        # The leading order leaves a relative error of order 1/d^2 (E|x| against sqrt d).
        assert abs(float(draws.mean()) - n * value) <= 3 * error + 0.5 * n * value / d**2


def test_points_share_the_common_part_that_finite_width_predicts() -> None:
    d, m1 = 32, 40
    for k in (2 * d, 16 * d):
        ratios = []
        for task in range(200):
            rng = np.random.default_rng([k, task])
            a = make_link("quadratic", R).hessian
            w = rng.standard_normal((k, d))
            w /= np.linalg.norm(w, axis=1, keepdims=True)
            rows = np.zeros_like(w)
            rows[:, :R] = w[:, :R] @ a
            x = (rng.standard_normal((m1, d)) @ w.T >= 0) @ rows / k
            mean = x.mean(axis=0)
            ratios.append((float(mean @ mean), float(np.mean(np.sum((x - mean) ** 2, axis=1)))))
        common, specific = np.mean(ratios, axis=0)
        assert common / specific == pytest.approx(predictions.diversity_ratio(d, k, m1), rel=0.15)


def test_common_mode_of_gaussian_points() -> None:
    """|mean/2|^2 over the signal 1/(2 pi r) in one direction, at L = infinity."""
    r, m1 = 6, 50
    means = np.random.default_rng(0).standard_normal((4000, m1, r)).mean(axis=1)
    energy = np.sum(means**2, axis=1) / 4 * (2 * math.pi * r)
    error = float(energy.std()) / math.sqrt(len(energy))
    assert abs(float(energy.mean()) - predictions.common_mode_ratio(r, m1)) <= 3 * error


def test_without_preprocessing_points_follow_d3_over_n_and_rows_d2_over_n() -> None:
    """At fixed N/d^2 the ratio q grows like d for the points and not at all for the rows."""
    per_d2, count = 4, 120
    runs = {d: simulate("cubic", d, per_d2, "none", count) for d in (12, 24, 48)}
    link = draw_model(12, R, "cubic", np.random.default_rng(0)).link
    expected = {name: [predicted(name, link, d, per_d2 * d * d, "none").ratio for d in runs] for name in ("rows", "kernel")}
    for name, theory in (("rows", 0.0), ("kernel", 1.0)):
        fit = power_law(
            list(runs),
            [runs[d][name] for d in runs],
            lambda samples: float(samples[:, 1].sum() / samples[:, 0].sum()),
            rng=np.random.default_rng(0),
            resamples=400,
        )
        slope = float(np.polyfit(np.log(list(runs)), np.log(expected[name]), 1)[0])
        assert abs(slope - theory) < 0.2
        assert fit.interval is not None
        assert fit.interval[0] <= slope <= fit.interval[1], f"{name}: {fit.exponent} {fit.interval}, predicted {slope}"
        assert not fit.interval[0] <= 1.0 - theory <= fit.interval[1], f"{name}: the rival {1.0 - theory} is not excluded"


def test_leading_order_formulas_are_the_limit_of_the_exact_ones() -> None:
    """The gap between leading and next order shrinks like 1/d at fixed N/d^2 and K/d."""
    link = draw_model(16, R, "cubic-plus", np.random.default_rng(0)).link
    for per_d2 in (1, 16):
        gaps = []
        for d in (512, 1024, 2048, 4096):
            n, k = per_d2 * d * d, 8 * d
            row = predictions.teacher_rows(link, 0.0, d, n).ratio / predictions.row_ratio_leading(link, 0.0, d, n)
            point = predictions.distilled_points(link, 0.0, d, n, k).ratio / predictions.point_ratio_leading(link, 0.0, d, n, k)
            gaps.append((abs(row - 1), abs(point - 1)))
        slopes = np.polyfit(np.log([512, 1024, 2048, 4096]), np.log(gaps), 1)[0]
        assert np.all(np.abs(slopes + 1.0) < 0.15), slopes
