"""The two-layer network in closed form against plain loops, torch autograd (once and twice) and dense differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import dense_gradient, detached, relative_error, to_numpy, to_torch, two_layer_loss
from tests.strategies import generators, normal_like, seeds, smooth_points
from theory import two_layer
from theory.distill.leaves import dot


def move(xp, x, dtype="float64"):
    return tuple(xp.asarray(a, dtype=getattr(xp, dtype)) for a in x)


@given(point=smooth_points())
def test_value_and_loss_are_their_sums(xp, point):
    theta, (x, y) = point
    a, w, b = theta
    f = [sum(a[i] * max(w[i] @ p + b[i], 0.0) for i in range(len(a))) for p in x]
    parts = two_layer.forward(move(xp, theta), xp.asarray(x))
    np.testing.assert_allclose(to_numpy(parts.f), f, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(to_numpy(parts.gate), x @ w.T + b > 0)
    np.testing.assert_array_equal(to_numpy(two_layer.value(move(xp, theta), xp.asarray(x))), to_numpy(parts.f))
    expected = sum((f_m - y_m) ** 2 for f_m, y_m in zip(f, y, strict=True)) / (2 * len(y))
    assert two_layer.loss(move(xp, theta), move(xp, (x, y))) == pytest.approx(expected, rel=1e-12)


@given(point=smooth_points())
def test_gradient_is_that_of_autograd(xp, point):
    theta, s = point
    p = detached(to_torch(theta))
    loss = two_layer_loss(p, to_torch(s))
    expected = torch.autograd.grad(loss, p)
    here = move(xp, theta), move(xp, s)
    assert relative_error(two_layer.gradient(*here), expected) < 1e-12
    value, gradient = two_layer.loss_and_gradient(*here)
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    assert relative_error(gradient, expected) < 1e-12


@given(point=smooth_points(), rng=generators)
def test_products_are_those_of_double_backward(xp, point, rng):
    theta, s = point
    c = normal_like(rng, theta)
    p, q = detached(to_torch(theta)), detached(to_torch(s))
    g = torch.autograd.grad(two_layer_loss(p, q), p, create_graph=True)
    expected = torch.autograd.grad(g, p + q, to_torch(c))
    h_c, m_c = two_layer.second_order(move(xp, theta), move(xp, s), move(xp, c))
    assert relative_error(h_c, expected[:3]) < 1e-12
    assert relative_error(m_c, expected[3:]) < 1e-12
    assert relative_error(two_layer.mixed(move(xp, theta), move(xp, s), move(xp, c)), m_c) == 0.0


@given(point=smooth_points(max_points=3), rng=generators)
def test_derivatives_are_limits_of_differences(point, rng):
    theta, s = point
    assert relative_error(two_layer.gradient(theta, s), dense_gradient(lambda p: two_layer.loss(p, s), theta)) < 1e-6
    c = normal_like(rng, theta)
    h_c, m_c = two_layer.second_order(theta, s, c)
    assert relative_error(h_c, dense_gradient(lambda p: float(dot(two_layer.gradient(p, s), c)), theta)) < 1e-6
    assert relative_error(m_c, dense_gradient(lambda q: float(dot(two_layer.gradient(theta, q), c)), s)) < 1e-6


@given(point=smooth_points(), rng=generators)
def test_single_precision_stays_single_and_close(xp, point, rng):
    theta, s = point
    c = normal_like(rng, theta)
    single = [move(xp, x, "float32") for x in (theta, s, c)]
    h_c, m_c = two_layer.second_order(*single)
    for found, expected in (
        (h_c + m_c, sum(two_layer.second_order(theta, s, c), ())),
        (two_layer.gradient(*single[:2]), two_layer.gradient(theta, s)),
    ):
        assert all(x.dtype == xp.float32 for x in found)
        size = max(float(np.max(np.abs(to_numpy(x)))) for x in (*theta, *s, *c)) ** 4 * theta[0].shape[0]
        assert all(np.max(np.abs(to_numpy(x) - y)) < 1e-4 * size for x, y in zip(found, expected, strict=True))


@given(point=smooth_points(), alpha=st.floats(0.1, 10.0))
def test_network_is_homogeneous_in_each_layer(point, alpha):
    (a, w, b), (x, _) = point
    f = two_layer.value((a, w, b), x)
    np.testing.assert_allclose(two_layer.value((alpha * a, w, b), x), alpha * f, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(two_layer.value((a, alpha * w, alpha * b), x), alpha * f, rtol=1e-10, atol=1e-10)


def test_gate_is_open_on_its_boundary(xp):
    theta = move(xp, (np.ones(1), np.zeros((1, 2)), np.zeros(1)))
    assert float(two_layer.forward(theta, xp.ones((1, 2), dtype=xp.float64)).gate[0, 0]) == 1.0


@given(seed=seeds)
def test_starts_are_functions_of_the_seed(seed):
    for init in (two_layer.symmetric_init, two_layer.gaussian_init):
        first, again = (init(3, 4, np.random.default_rng(seed)) for _ in range(2))
        assert relative_error(first, again) == 0.0


@pytest.mark.parametrize("width", [-2, 0, 1, 5])
def test_symmetric_start_needs_an_even_width(width):
    with pytest.raises(ValueError, match=f"even width >= 2: L={width}"):
        two_layer.symmetric_init(3, width, np.random.default_rng(0))


@pytest.mark.parametrize("init", [two_layer.symmetric_init, two_layer.gaussian_init])
def test_starts_need_a_dimension(init):
    with pytest.raises(ValueError, match="d=0"):
        init(0, 4, np.random.default_rng(0))
