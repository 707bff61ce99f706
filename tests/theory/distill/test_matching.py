"""Distances between gradients by autograd and differences; gradient matching; why it agrees with performance matching."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.oracles import dense_gradient, detached, relative_error, to_numpy, to_torch, two_layer_loss
from tests.strategies import generators, scales, smooth_points
from theory import two_layer
from theory.distill.adjoint import sweep, unroll
from theory.distill.inner_optim import SGD
from theory.distill.leaves import add, dot, norm, scale
from theory.distill.matching import DISTANCES, cosine, gradient_matching, inner_product, squared
from theory.distill.truncation import Window

SHAPES = ((3,), (4, 2), (2, 3, 2))


def gradients(rng):
    return tuple(tuple(rng.standard_normal(shape) for shape in SHAPES) for _ in range(2))


def torch_distance(name, g_s, g_t):
    if name == "squared":
        return sum(0.5 * torch.nn.functional.mse_loss(a, b, reduction="sum") for a, b in zip(g_s, g_t, strict=True))
    if name == "inner_product":
        return -sum(torch.tensordot(a, b, dims=a.ndim) for a, b in zip(g_s, g_t, strict=True))
    rows = [(x.flatten(1) if x.ndim > 1 else x[None], y.flatten(1) if y.ndim > 1 else y[None]) for x, y in zip(g_s, g_t, strict=True)]
    return sum((1 - torch.nn.functional.cosine_similarity(a, b, dim=1)).sum() for a, b in rows)


@pytest.mark.parametrize("name", DISTANCES)
@given(rng=generators)
def test_cotangent_is_the_gradient_of_the_distance(xp, name, rng):
    g_s, g_t = gradients(rng)
    value, c = DISTANCES[name](tuple(xp.asarray(x) for x in g_s), tuple(xp.asarray(x) for x in g_t))
    leaves = detached(to_torch(g_s))
    expected = torch_distance(name, leaves, to_torch(g_t))
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    assert relative_error(c, torch.autograd.grad(expected, leaves)) < 1e-11
    assert relative_error(c, dense_gradient(lambda g: DISTANCES[name](g, g_t)[0], g_s, 1e-5)) < 1e-6


@given(rng=generators, row=scales(), other=scales())
def test_cosine_sees_directions_of_rows_only(rng, row, other):
    g_s, g_t = gradients(rng)
    value, c = cosine(g_s, g_t)
    scaled = tuple(row * x for x in g_s)
    assert cosine(scaled, tuple(other * x for x in g_t))[0] == pytest.approx(value, rel=1e-12)
    assert cosine(g_s, scaled)[0] == pytest.approx(0.0, abs=1e-12)
    for x, y in zip(g_s, c, strict=True):
        along = np.sum((x * y).reshape(x.shape[0] if x.ndim > 1 else 1, -1), axis=1)
        assert np.max(np.abs(along)) < 1e-13, "a degree-0 function has no derivative along its own row"


def test_dead_rows_count_for_nothing(xp):
    g_s, g_t = (xp.asarray([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]),), (xp.asarray([[1.0, 2.0], [0.0, 0.0], [0.0, 2.0]]),)
    value, c = cosine(g_s, g_t)
    assert value == 1.0
    np.testing.assert_array_equal(to_numpy(c[0]), [[0.0, 0.0], [0.0, 0.0], [0.0, -1.0]])


@given(rng=generators)
def test_squared_is_inner_product_plus_norms(rng):
    g_s, g_t = gradients(rng)
    assert squared(g_s, g_t)[0] == pytest.approx(inner_product(g_s, g_t)[0] + 0.5 * norm(g_s) ** 2 + 0.5 * norm(g_t) ** 2, rel=1e-12)
    assert squared(g_s, g_s)[0] == 0.0


@pytest.mark.parametrize("name", DISTANCES)
@given(point=smooth_points(), rng=generators)
def test_gradient_matching_differentiates_through_the_gradient(name, point, rng):
    theta, s = point
    problem = Student(theta[1].shape[1], theta[0].shape[0], "gaussian")
    g_t = tuple(rng.standard_normal(x.shape) for x in theta)
    # A dead leaf has no direction: torch's cosine then differs by its own eps.
    assume(name != "cosine" or all(np.all(np.linalg.norm(np.atleast_2d(x), axis=1) > 1e-6) for x in problem.gradient(theta, s, None)))
    value, grad_s = gradient_matching(problem, DISTANCES[name], theta, s, None, g_t)
    p, q = detached(to_torch(theta)), detached(to_torch(s))
    match = torch_distance(name, torch.autograd.grad(two_layer_loss(p, q), p, create_graph=True), to_torch(g_t))
    assert value == pytest.approx(float(match.detach()), rel=1e-10, abs=1e-12)
    expected = torch.autograd.grad(match, q)
    # The cosine of one number is +-1 whatever the number: its derivative cancels, and rounding is all there is.
    assert norm(add(grad_s, tuple(-to_numpy(x) for x in expected))) <= 1e-9 * norm(tuple(to_numpy(x) for x in expected)) + 1e-9


@given(rng=generators, half=st.integers(2, 4))
def test_matching_gradients_and_matching_performance_agree_at_small_inner_steps(rng, half):
    """One inner step of size eta: d/dS real(theta - eta g_S) = eta d/dS(-<g_S, g_T>) + O(eta^2), so 1 - cosine = O(eta^2)."""
    student = Student(4, 2 * half)
    real = RealSample(rng.standard_normal((30, 4)), rng.standard_normal(30))
    s = (rng.standard_normal((5, 4)), rng.standard_normal(5))
    theta = student.init(rng)
    g_t = real.loss_and_gradient(theta, None)[1]
    dc = gradient_matching(student, inner_product, theta, s, None, g_t)[1]

    etas = (1e-3, 1e-4, 1e-5)
    gaps, angles = [], []
    for eta in etas:
        tape = unroll(student, SGD(eta), s, theta, [None], Window(0, 1))
        lam = real.loss_and_gradient(tape.end.theta, None)[1]
        dd = scale(1 / eta, sweep(student, SGD(eta), s, tape, lam).grad_s)
        # Between gates the real loss is smooth in eta; runs that cross one are another experiment.
        assume(np.array_equal(two_layer.forward(theta, real.x).gate, two_layer.forward(tape.end.theta, real.x).gate))
        gaps.append(norm(add(dd, scale(-1.0, dc))) / norm(dc))
        angles.append(1.0 - float(dot(dd, dc)) / (norm(dd) * norm(dc)))
    assert all(angle <= gap**2 + 1e-14 for angle, gap in zip(angles, gaps, strict=True))
    assert angles[2] < 1e-5
    slope = np.polyfit(np.log(etas), np.log(gaps), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05), "the gap is of first order in eta"
