"""Flat directions and their invariants; sharpness and the largest Hessian eigenvalue against exact values."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq

from tests.oracles import relative_error, to_numpy
from tests.strategies import generators, scales, smooth_points
from theory import two_layer
from theory.distill.flatness import BALLS, Flat, lambda_max, orthogonal_part, perturbation, sharpness
from theory.distill.leaves import add, axpy, dot, norm, scale
from theory.distill.problem import Diverged

radii = st.floats(1e-3, 1.0)


def leaves(rng: np.random.Generator):
    return rng.standard_normal(3), rng.standard_normal((2, 4))


def quadratic(rng: np.random.Generator, eigenvalues: np.ndarray):
    """(loss, gradient, product, H) of (1/2) x^T H x + b.x on one leaf."""
    basis, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    h, b = basis @ np.diag(eigenvalues) @ basis.T, rng.standard_normal(len(eigenvalues))
    return (lambda x: float(0.5 * x[0] @ h @ x[0] + b @ x[0])), (lambda x: (h @ x[0] + b,)), (lambda u: (h @ u[0],)), h, b


@given(rng=generators, rho=radii, size=scales())
def test_a_euclidean_perturbation_has_norm_rho_along_the_gradient(xp, rng, rho, size):
    theta, g = leaves(rng), scale(size, leaves(rng))
    moved = tuple(xp.asarray(x) for x in g)
    e = perturbation(tuple(xp.asarray(x) for x in theta), moved, rho)
    assert norm(e) == pytest.approx(rho, rel=1e-12)
    assert relative_error(scale(norm(g) / rho, e), g) < 1e-12


@given(rng=generators, rho=radii, size=scales())
def test_an_adaptive_perturbation_is_the_euclidean_one_in_relative_coordinates(rng, rho, size):
    theta, g = leaves(rng), scale(size, leaves(rng))
    e = perturbation(theta, g, rho, "adaptive")
    relative = tuple(a / np.abs(w) for a, w in zip(e, theta, strict=True))
    assert norm(relative) == pytest.approx(rho, rel=1e-12)
    # The linear maximiser over the ball: no other point of it has a larger inner product with g.
    for _ in range(5):
        other = tuple(np.abs(w) * v for w, v in zip(theta, leaves(rng), strict=True))
        other = scale(rho / norm(tuple(a / np.abs(w) for a, w in zip(other, theta, strict=True))), other)
        assert float(dot(g, other)) <= float(dot(g, e)) * (1 + 1e-12)
    # Rescaling a coordinate and its weight leaves the relative perturbation alone.
    c = 7.0
    again = perturbation(scale(c, theta), scale(1 / c, g), rho, "adaptive")
    assert relative_error(again, scale(c, e)) < 1e-12


@pytest.mark.parametrize("ball", BALLS)
def test_nothing_to_climb_perturbs_nothing(ball):
    theta = (np.array([1.0, 0.0]),)
    zero = (np.zeros(2),)
    assert np.array_equal(perturbation(theta, zero, 0.1, ball)[0], zero[0])
    only_dead = perturbation(theta, (np.array([0.0, 3.0]),), 0.1, "adaptive")
    assert np.array_equal(only_dead[0], zero[0])
    with pytest.raises(Diverged, match="norm of the gradient that perturbs is"):
        perturbation(theta, (np.array([np.nan, 1.0]),), 0.1, ball)


@given(rng=generators, alpha=st.floats(0.0, 2.0), rho=radii)
def test_the_surrogate_takes_off_what_is_orthogonal_to_the_perturbed_gradient(rng, alpha, rho):
    g, g_p = leaves(rng), leaves(rng)
    perp = orthogonal_part(g, g_p)
    assert abs(float(dot(perp, g_p))) < 1e-12 * norm(g) * norm(g_p)
    assert norm(perp) ** 2 == pytest.approx(norm(g) ** 2 - float(dot(g, g_p)) ** 2 / norm(g_p) ** 2, rel=1e-9, abs=1e-12)
    d = Flat(rho, alpha).combine(g, g_p)
    assert relative_error(add(d, scale(alpha, perp)), g_p) < 1e-12
    assert float(dot(d, g_p)) == pytest.approx(norm(g_p) ** 2, rel=1e-9), "the step's part along g_p is g_p's own"
    assert relative_error(Flat(rho, 0.0).combine(g, g_p), g_p) == 0.0


@given(rng=generators, alpha=st.floats(0.0, 2.0))
def test_the_penalty_is_the_gradient_of_the_one_step_objective(rng, alpha):
    g, g_p = leaves(rng), leaves(rng)
    d = Flat(0.1, alpha, combination="penalty").combine(g, g_p)
    assert relative_error(d, axpy(alpha, add(g_p, scale(-1.0, g)), g)) < 1e-12
    assert relative_error(Flat(0.1, 1.0, combination="penalty").combine(g, g_p), g_p) < 1e-15


@given(rng=generators, alpha=st.floats(0.0, 1.5), ball=st.sampled_from(BALLS))
def test_a_vanishing_radius_gives_the_plain_gradient_and_theta_is_not_touched(rng, alpha, ball):
    loss, gradient, _, _, _ = quadratic(rng, rng.standard_normal(5))
    theta = (rng.standard_normal(5),)
    before, g = theta[0].copy(), gradient(theta)
    assume(norm(g) > 1e-3)
    for combination in ("surrogate", "penalty"):
        d = Flat(0.0, alpha, ball, combination)(gradient, theta)
        assert relative_error(d, g) < 1e-9 * (1 + alpha)
    Flat(0.3, alpha, ball)(gradient, theta)
    assert np.array_equal(theta[0], before)
    e = perturbation(theta, g, 1e-6, ball)
    assert loss(add(theta, e)) >= loss(theta) - 1e-10, "to first order the perturbed loss is no lower"


@given(point=smooth_points(), rho=st.floats(1e-6, 1e-4))
def test_on_the_network_the_direction_is_two_gradients_of_one_batch(point, rho):
    theta, s = point
    g = two_layer.gradient(theta, s)
    assume(norm(g) > 1e-6)
    g_p = two_layer.gradient(add(theta, scale(rho / norm(g), g)), s)
    assert relative_error(Flat(rho)(lambda t: two_layer.gradient(t, s), theta), g_p) < 1e-12


@given(rng=generators, rho=radii)
def test_sharpness_is_a_lower_bound_that_more_steps_bring_to_the_maximum(rng, rho):
    loss, gradient, _, h, b = quadratic(rng, np.abs(rng.standard_normal(4)))
    theta = (rng.standard_normal(4),)
    slope = h @ theta[0] + b
    assume(np.linalg.norm(slope) > 1e-2)
    values, basis = np.linalg.eigh(h)
    parts = basis.T @ slope
    # At the maximum over the ball (mu I - H) e = slope with ||e|| = rho and mu above the spectrum.
    assume(abs(parts[-1]) > 1e-3)
    low, high = values[-1] + 0.5 * abs(parts[-1]) / rho, values[-1] + np.linalg.norm(slope) / rho + 1.0
    mu = brentq(lambda m: np.linalg.norm(parts / (m - values)) - rho, low, high, xtol=1e-14, rtol=1e-14)
    e = basis @ (parts / (mu - values))
    exact = float(slope @ e + 0.5 * e @ h @ e)
    one, many = (sharpness(loss, gradient, theta, rho, steps=k) for k in (1, 400))
    assert 0.0 <= one <= many + 1e-12
    assert many <= exact * (1 + 1e-6) + 1e-9
    assert many >= exact * 0.99 - 1e-9


def test_sharpness_names_what_is_not_finite():
    with pytest.raises(Diverged, match="sharpness: the loss is inf"):
        sharpness(lambda _: math.inf, lambda x: x, (np.ones(2),), 0.1)
    with pytest.raises(ValueError, match="at least one step: steps=0"):
        sharpness(lambda _: 0.0, lambda x: x, (np.ones(2),), 0.1, steps=0)


@given(rng=generators, negative=st.booleans())
def test_the_largest_eigenvalue_and_not_the_largest_in_size(rng, negative):
    eigenvalues = np.array([-3.0, -1.0, 0.2, 1.5]) if negative else np.array([-0.5, 0.1, 1.0, 2.0])
    _, _, product, h, _ = quadratic(rng, eigenvalues)
    found = lambda_max(product, (np.zeros(4),), rng, tolerance=1e-8, steps=2000)
    assert found.value == pytest.approx(np.linalg.eigvalsh(h)[-1], rel=1e-6)
    assert found.residual <= 1e-6
    assert 1 <= found.products <= 4000


def test_an_indefinite_spectrum_without_a_positive_part(xp):
    h = np.diag([-4.0, -2.0, -1.0])
    moved = xp.asarray(h)
    found = lambda_max(lambda u: (moved @ u[0],), (xp.zeros(3, dtype=xp.float64),), np.random.default_rng(0), 1e-9, 3000)
    assert found.value == pytest.approx(-1.0, rel=1e-6)
    zero = lambda_max(lambda u: (0.0 * u[0],), (xp.zeros(3, dtype=xp.float64),), np.random.default_rng(0))
    assert zero.value == 0.0


def test_the_hessian_product_of_the_network_gives_its_curvature():
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(5), rng.standard_normal((5, 3)), rng.standard_normal(5)
    s = rng.standard_normal((7, 3)), rng.standard_normal(7)
    found = lambda_max(lambda c: two_layer.second_order(theta, s, c)[0], theta, rng, 1e-7, 3000)
    basis = np.eye(5 + 15 + 5)
    columns = []
    for v in basis:
        parts = v[:5], v[5:20].reshape(5, 3), v[20:]
        columns.append(np.concatenate([to_numpy(x).ravel() for x in two_layer.second_order(theta, s, parts)[0]]))
    assert found.value == pytest.approx(np.linalg.eigvalsh(np.array(columns))[-1], rel=1e-5)


def test_a_product_that_is_not_finite_is_named():
    with pytest.raises(Diverged, match="power iteration 1: the residual is nan"):
        lambda_max(lambda u: (np.nan * u[0],), (np.zeros(2),), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rho": -0.1}, "radius must be >= 0 and finite: rho=-0.1"),
        ({"alpha": math.nan}, "weight must be >= 0 and finite: alpha=nan"),
        ({"ball": "cube"}, "unknown ball 'cube'; known: euclidean, adaptive"),
        ({"combination": "sum"}, "unknown combination 'sum'"),
    ],
)
def test_settings_are_refused_with_their_value(settings, line):
    with pytest.raises(ValueError, match=line):
        Flat(**settings)


def test_unknown_ball_and_empty_iterations_are_refused():
    with pytest.raises(ValueError, match="unknown ball 'cube'"):
        perturbation((np.ones(1),), (np.ones(1),), 0.1, "cube")
    with pytest.raises(ValueError, match=r"steps >= 1: tolerance=0\.001, steps=0"):
        lambda_max(lambda u: u, (np.ones(1),), np.random.default_rng(0), steps=0)
