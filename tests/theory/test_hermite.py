"""Hermite coefficients against adaptive integration, the recurrence against SciPy, orthonormality by exact quadrature."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import hermite_e
from scipy.integrate import quad
from scipy.special import eval_hermitenorm

from tests.oracles import to_numpy
from tests.strategies import generators
from theory import hermite


def density(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


@pytest.mark.parametrize("k", range(12))
def test_gate_and_relu_coefficients_are_their_integrals(k):
    """c_k = E[f He_k], the half line integrated adaptively, relative to the size of He_k."""
    size = math.sqrt(math.factorial(k))
    gate, _ = quad(lambda z: float(eval_hermitenorm(k, z)) * density(z), 0, 20, epsabs=1e-12 * size, epsrel=1e-12)
    relu, _ = quad(lambda z: z * float(eval_hermitenorm(k, z)) * density(z), 0, 20, epsabs=1e-12 * size, epsrel=1e-12)
    assert abs(hermite.gate_coefficient(k) - gate) < 1e-11 * size
    assert abs(hermite.relu_coefficient(k) - relu) < 1e-11 * size


def test_gate_coefficients_have_the_known_values():
    root = 1.0 / math.sqrt(2.0 * math.pi)
    expected = [0.5, root, 0.0, -root, 0.0, 3.0 * root]
    assert [hermite.gate_coefficient(k) for k in range(6)] == pytest.approx(expected, abs=1e-15)


def test_relu_coefficients_exhaust_its_second_moment():
    """Parseval: sum_k c_k^2 / k! rises to E relu^2 = 1/2; the tail falls like k^(-3/2)."""
    parts = np.array([hermite.relu_coefficient(k) ** 2 / math.factorial(k) for k in range(120)])
    missing = 0.5 - np.cumsum(parts)
    assert np.all(missing > 0)
    assert missing[100] < 1e-3
    assert missing[100] / missing[25] == pytest.approx(4 ** (-1.5), rel=0.1)


@given(rng=generators, degree=st.integers(0, 10))
def test_coefficients_invert_the_expansion(rng, degree):
    c = rng.standard_normal(degree + 1)
    found = hermite.coefficients(lambda z: hermite_e.hermeval(z, c), degree + 2, nodes=32)
    expected = np.append(c * [math.factorial(k) for k in range(degree + 1)], [0.0, 0.0])
    size = np.sqrt([float(math.factorial(k)) for k in range(degree + 3)]) * np.linalg.norm(expected)
    assert np.max(np.abs(found - expected) / size) < 1e-12


def test_quadrature_of_a_jump_errs_like_one_over_the_nodes():
    for nodes in (64, 128, 255):
        found = hermite.coefficients(lambda z: (z >= 0).astype(float), 3, nodes)
        exact = [hermite.gate_coefficient(k) for k in range(4)]
        assert np.max(np.abs(found - exact)) < 1.0 / math.sqrt(nodes)
        assert abs(found[1] - exact[1]) < 3.0 / nodes


@given(k_max=st.integers(0, 12), rng=generators)
def test_recurrence_is_that_of_scipy(xp, k_max, rng):
    z = 2.0 * rng.standard_normal((3, 4))
    values = hermite.orthonormal(xp.asarray(z), k_max)
    assert len(values) == k_max + 1
    for k, found in enumerate(values):
        expected = eval_hermitenorm(k, z) / math.sqrt(math.factorial(k))
        size = np.polynomial.polynomial.polyval(np.abs(z), np.abs(hermite_e.herme2poly([0.0] * k + [1.0]))) / math.sqrt(math.factorial(k))
        assert np.max(np.abs(to_numpy(found) - expected) / size) < 1e-13


def test_orthonormal_basis_has_unit_gram_matrix():
    z, weights = hermite_e.hermegauss(30)
    basis = np.stack(hermite.orthonormal(z, 12))
    gram = (basis * weights / math.sqrt(2.0 * math.pi)) @ basis.T
    np.testing.assert_allclose(gram, np.eye(13), atol=1e-11)


@pytest.mark.parametrize("call", [lambda: hermite.gate_coefficient(-1), lambda: hermite.relu_coefficient(-2)])
def test_negative_orders_are_refused(call):
    with pytest.raises(ValueError, match="order must be >= 0"):
        call()


@pytest.mark.parametrize(("k_max", "nodes"), [(-1, 8), (8, 8)])
def test_too_few_nodes_are_refused(k_max, nodes):
    with pytest.raises(ValueError, match=f"k_max={k_max}, nodes={nodes}"):
        hermite.coefficients(np.cos, k_max, nodes)
