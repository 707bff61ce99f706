"""The typical test risk: its couplings by quadrature, its limits, an ensemble it is exact for, and its exponent."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import head_risk
from theory.head_risk import (
    TOP,
    HeadFit,
    couplings,
    fitted_risk,
    harmonics,
    least_points,
    legendre,
    ridge_risk,
    row_factors,
    sectors,
    size_moment,
    student_risk,
    teacher_risk,
)

RIDGES = (1e-6, 1e-4, 1e-2)


def fit(r: int) -> HeadFit:
    return HeadFit(3 * r * r, 12 * r * r, RIDGES)


def sphere_mean(r: int, f: Callable[[np.ndarray], np.ndarray], kink: float = 0.0) -> float:
    """E f(t) for one coordinate t of a uniform direction of R^r, f smooth on both sides of the kink: Gauss-Legendre in the angle."""
    node, weight = np.polynomial.legendre.leggauss(120)
    middle = math.acos(max(-1.0, min(1.0, kink)))
    total = mass = 0.0
    for low, high in ((0.0, middle), (middle, math.pi)):
        angle = low + 0.5 * (high - low) * (node + 1.0)
        density = 0.5 * (high - low) * weight * np.sin(angle) ** (r - 2)
        total, mass = total + float(density @ f(np.cos(angle))), mass + float(density.sum())
    return total / mass


@given(st.integers(3, 40), st.floats(0.2, 4.0), st.floats(-4.0, 4.0))
def test_couplings_are_the_harmonic_coefficients_of_a_neuron(r, scale, b):
    found, second = couplings(r, np.array([scale]), np.array([b]))
    found, second = found[:, 0], float(second[0])
    for degree in range(TOP + 1):
        expected = sphere_mean(r, lambda t, k=degree: np.maximum(0.0, scale * t + b) * legendre(r, k, t), -b / scale)
        assert float(found[degree]) == pytest.approx(expected, abs=1e-8)
    assert second == pytest.approx(sphere_mean(r, lambda t: np.maximum(0.0, scale * t + b) ** 2, -b / scale), abs=1e-8)
    # Parseval: the sectors kept hold no more than all of the energy.
    count = np.array([harmonics(r, degree) for degree in range(TOP + 1)])
    assert float(count @ found**2) <= second * (1 + 1e-9) + 1e-12


@given(st.integers(3, 30), st.integers(0, 6), st.integers(0, 6))
def test_harmonics_are_orthogonal_and_counted(r, j, k):
    product = sphere_mean(r, lambda t: legendre(r, j, t) * legendre(r, k, t))
    assert product == pytest.approx(1.0 / harmonics(r, k) if j == k else 0.0, abs=1e-9)


@pytest.mark.parametrize("row_norm", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("gaussian", [False, True])
def test_energy_is_that_of_a_relu(row_norm, gaussian):
    """E relu(w.z + b)^2 = (|w|^2 + 1)/2."""
    found = sectors(np.full(8, 1 / 8), row_norm=row_norm, gaussian=gaussian)
    assert found.energy == pytest.approx(0.5 * (row_norm**2 + 1.0), rel=1e-9)
    assert float(found.inputs @ found.target**2) == pytest.approx(1.0)


@given(st.integers(4, 40), st.floats(0.0, 2.0))
def test_row_factors_keep_equal_rows_and_lose_energy_to_unequal_ones(r, spread):
    rows = np.sort(np.exp(spread * np.linspace(-1.0, 1.0, r)))
    rows = rows / rows.sum()
    for degree in (1, 2, 3):
        q, weight = row_factors(rows, 0.0, degree)
        assert weight.sum() == pytest.approx(1.0)
        mean = float(q @ weight)
        assert mean <= 1.0 + 1e-9
        if spread == 0.0 or degree == 1:
            assert mean == pytest.approx(1.0, rel=1e-6)
        higher = row_factors(rows, 0.5 * float(rows[-1]), degree)
        assert float(higher[0] @ higher[1]) >= mean * (1 - 1e-12), "a common part of one size varies less than Gaussian rows"


def test_limits():
    """Nothing is learned under a huge ridge, everything by many neurons from many inputs; more of either never hurts at a small ridge."""
    found = sectors(np.full(8, 1 / 8))
    assert ridge_risk(found, 192, 768, 1e9) == pytest.approx(1.0, abs=1e-3)
    assert ridge_risk(found, 20_000, 400_000, 1e-3) < 0.01
    risks = [ridge_risk(found, width, 4 * width, 1e-4 * width) for width in (48, 96, 192, 384, 768)]
    assert all(b < a for a, b in pairwise(risks))
    risks = [ridge_risk(found, 192, train, 1e-4 * train) for train in (400, 800, 1600, 6400)]
    assert all(b < a for a, b in pairwise(risks))


def gaussian_ensemble(width: int, train: int, ridge: float, draws: int) -> np.ndarray:
    """Test risks of ridge heads where the harmonics are independent Gaussians, with the types of both sides: what step 2 describes."""
    rng = np.random.default_rng(3)
    found = sectors(np.full(4, 1 / 4))
    kept = range(TOP + 1)
    k = [found.left[degree] @ found.right[degree].T for degree in kept]
    risks = []
    for _ in range(draws):
        c = rng.choice(len(found.neurons), width, p=found.neurons)
        hidden = [rng.standard_normal((width, round(found.count[degree]))) for degree in kept]
        tail = rng.standard_normal((width, 400)) / 20.0

        def features(a: np.ndarray, latent: list[np.ndarray], far: np.ndarray, c=c, hidden=hidden, tail=tail) -> np.ndarray:
            inner = sum(k[degree][np.ix_(a, c)] * (latent[degree] @ hidden[degree].T) for degree in kept)
            return inner + np.sqrt(found.tail[np.ix_(a, c)]) * (far @ tail.T)

        sets = []
        for n in (train, 2000):
            a = rng.choice(len(found.inputs), n, p=found.inputs)
            latent = [rng.standard_normal((n, round(found.count[degree]))) for degree in kept]
            sets.append((features(a, latent, rng.standard_normal((n, 400))), found.target[a] * latent[2][:, 0]))
        (phi, y), (test, clean) = sets
        head = np.linalg.solve(phi.T @ phi + ridge * np.eye(width), phi.T @ y)
        risks.append(np.mean((test @ head - clean) ** 2))
    return np.array(risks)


def test_the_fixed_point_is_that_of_gaussian_harmonics():
    """Two independent ways to one number: the equations of steps 2 and 3, and the ensemble that they describe, drawn."""
    width, train = 80, 320
    found = sectors(np.full(4, 1 / 4))
    for ridge in (0.05, 2.0):
        drawn = gaussian_ensemble(width, train, ridge, 16)
        error = float(drawn.std(ddof=1)) / math.sqrt(len(drawn))
        predicted = ridge_risk(found, width, train, ridge)
        assert abs(drawn.mean() - predicted) < 3 * error + 0.04 * predicted
        assert error < 0.06 * predicted


@given(st.integers(2, 12), st.floats(0.0, 1.5), st.floats(0.0, 0.95), st.integers(0, 2**32 - 1))
def test_size_moments_are_those_of_drawn_rows(r, spread, share, seed):
    """E|F|^2, E|F|^4, E|F|^6 of Gaussian rows plus a part of one size and two signs, in standard errors; alpha = 1e-6 each."""
    rng = np.random.default_rng(seed)
    rows = np.sort(np.exp(spread * np.linspace(-1.0, 1.0, r)))
    rows /= rows.sum()
    common = share * float(rows[-1])
    drawn = rng.standard_normal((20_000, r)) * np.sqrt(rows - np.append(np.zeros(r - 1), common))
    drawn[:, -1] += np.sqrt(common) * np.where(rng.integers(0, 2, len(drawn)) == 1, 1.0, -1.0)
    square = np.sum(drawn**2, axis=1)
    for degree in (1, 2, 3):
        power = square**degree
        error = float(power.std()) / math.sqrt(len(power))
        assert abs(power.mean() - size_moment(rows, common, degree)) < 5 * error + 1e-12


def test_a_strong_common_part_makes_the_sixth_moment_smaller():
    """r = 8, 0.4 of the energy in the common part: 1.711 by hand, where moments without the cross term give 1.999."""
    rows = np.append(np.full(7, 0.075), 0.475)
    rng = np.random.default_rng(2)
    drawn = rng.standard_normal((1_000_000, 8)) * math.sqrt(0.075) + np.append(np.zeros(7), math.sqrt(0.4))
    power = np.sum(drawn**2, axis=1) ** 3
    assert abs(power.mean() - size_moment(rows, 0.4, 3)) < 4 * float(power.std()) / math.sqrt(len(power))
    assert size_moment(rows, 0.4, 3) == pytest.approx(1.711, abs=5e-4)


def drawn_risks(width: int, train: int, ridges: tuple[float, ...], draws: int) -> np.ndarray:
    """(draws, ridges) test risks of heads on rows of one norm at r = 8, by singular values: exact where Phi^T Phi is singular."""
    rng, risks = np.random.default_rng(5), []
    form = np.where(np.arange(8) % 2 == 0, 1.0, -1.0) / 4.0  # variance 1, traceless
    for _ in range(draws):
        rows, bias = rng.standard_normal((width, 8)), rng.standard_normal(width)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        (phi, y), (test, clean) = (
            (np.maximum(z @ rows.T + bias, 0.0), z**2 @ form) for z in (rng.standard_normal((n, 8)) for n in (train, 2000))
        )
        u, d, v = np.linalg.svd(phi, full_matrices=False)
        risks.append([np.mean((test @ (v.T @ (d / (d * d + ridge) * (u.T @ y))) - clean) ** 2) for ridge in ridges])
    return np.array(risks)


@pytest.mark.parametrize(("width", "ridges", "allowance"), [(400, (1e-4, 1e-8, 1e-10), 0.0), (192, (1e-4, 1e-6), 0.1)])
def test_few_inputs_and_a_small_ridge(width, ridges, allowance):
    """S is 400 to 3e9 there: the derivative of step 3 must not be taken by a step of the order of 1. At the peak of the risk, n = L, step 2
    itself is a tenth off at r = 8.
    """
    found, train = sectors(np.full(8, 1 / 8)), 192
    drawn = drawn_risks(width, train, tuple(ridge * train for ridge in ridges), 40)
    predicted = [ridge_risk(found, width, train, ridge * train * found.energy) for ridge in ridges]
    for values, expected in zip(drawn.T, predicted, strict=True):
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        assert abs(values.mean() - expected) < 3 * error + allowance * expected
        assert error < 0.08 * expected
    if width > train:
        assert predicted[2] == pytest.approx(predicted[1], rel=1e-3), "a ridge this small is none"


def test_risk_with_many_inputs_is_as_published():
    """The forms of docs/results/simulator.md at L = 192 and 768, 4 L inputs: to 1e-4, whatever the step."""
    assert teacher_risk(8, HeadFit(192, 768, (1e-8, 1e-6, 1e-4, 1e-2))) == pytest.approx(0.0841832, rel=1e-4)
    assert teacher_risk(16, HeadFit(768, 3072, (1e-6, 1e-4))) == pytest.approx(0.0786371, rel=1e-4)


@pytest.mark.parametrize("reflected", [False, True])
def test_risk_falls_with_points_to_that_of_equal_rows(reflected):
    r = 8
    risks = [student_risk(r, m, fit(r), reflected) for m in (16, 32, 64, 256, 4096, 65536)]
    limit = fitted_risk(sectors(np.full(r, 1 / r)), fit(r))
    assert all(b < a for a, b in pairwise(risks))
    assert risks[-1] == pytest.approx(limit, rel=0.01)
    assert teacher_risk(r, fit(r)) > limit, "norms that vary cost risk"


def test_least_points_meet_the_ratio_and_become_proportional_to_r():
    found = {r: [least_points(r, 1.25, fit(r), reflected) for reflected in (False, True)] for r in (8, 32, 64)}
    for k, reflected in enumerate((False, True)):
        assert student_risk(8, found[8][k], fit(8), reflected) == pytest.approx(1.25 * teacher_risk(8, fit(8)), rel=0.01)
        early = math.log(found[32][k] / found[8][k]) / math.log(4)
        late = math.log(found[64][k] / found[32][k]) / math.log(2)
        assert 1.0 < late < early < 2.0, "between one and two at these sizes, on its way to one"
        assert late < 1.3
    assert all(plain > reflected for plain, reflected in found.values())
    assert least_points(8, 0.9, fit(8), True) == math.inf
    with pytest.raises(ValueError, match=r"risk <= 20 x the teacher's at M1 = 16 already"):
        least_points(8, 20.0, fit(8), True)


def test_bad_heads_and_unsettled_points_are_named(monkeypatch):
    for wrong in ({"width": 0}, {"train": 0}, {"row_norm": 0.0}, {"ridges": ()}, {"ridges": (0.0,)}):
        with pytest.raises(ValueError, match="a head needs width, train, row_norm and ridges > 0"):
            HeadFit(**({"width": 8, "train": 32, "ridges": RIDGES} | wrong))
    monkeypatch.setattr(head_risk, "_change", lambda old, new: math.nan)
    with pytest.raises(FloatingPointError, match=r"does not settle \(L=48, n=192, ridge=0.01\)"):
        ridge_risk(sectors(np.full(4, 1 / 4)), 48, 192, 0.01)


def test_as_many_inputs_as_neurons_without_a_ridge_is_an_error():
    """The peak of the risk: the iteration slows down as 1 / sqrt(ridge), and stops by name rather than with a number."""
    found = sectors(np.full(8, 1 / 8))
    with pytest.raises(FloatingPointError, match=r"does not settle \(L=192, n=192"):
        ridge_risk(found, 192, 192, 1e-8 * 192)
