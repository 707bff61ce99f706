"""Means over caps of the sphere: areas in three dimensions, moments of the half sphere, and a drawn polynomial against samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proofs_check.gaussian import cap_mean, sphere_mean
from proofs_check.margins import sampled_mean
from proofs_check.sampled import directions


def unit(rng, k):
    u = rng.standard_normal(k)
    return u / np.linalg.norm(u)


@given(threshold=st.floats(0.0, 0.99), k=st.integers(2, 3), seed=st.integers(0, 2**32 - 1))
def test_a_cap_of_the_sphere_in_space_has_the_area_of_its_height(threshold, k, seed):
    u = unit(np.random.default_rng(seed), k)
    assert cap_mean(lambda w: np.ones((len(w), 1)), u, 3, 2, threshold) == pytest.approx((1.0 - threshold) / 2.0, abs=1e-13)


@given(d=st.integers(4, 1000), k=st.integers(2, 4), seed=st.integers(0, 2**32 - 1))
def test_moments_of_the_half_sphere(d, k, seed):
    """E[w 1{w.u >= 0}] = u E|w_1|/2, and even moments are half of the whole."""
    u = unit(np.random.default_rng(seed), k)
    mean = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / (2.0 * math.sqrt(math.pi))
    np.testing.assert_allclose(cap_mean(lambda w: w, u, d, 2), mean * u, rtol=0, atol=1e-12 * mean)
    square = cap_mean(lambda w: w[:, :1] ** 2 * w[:, 1:2] ** 2, u, d, 4)
    whole = sphere_mean(lambda w: np.array([w[0] ** 2 * w[1] ** 2]), d, 2, 4)
    np.testing.assert_allclose(square, whole / 2.0, rtol=1e-10)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_polynomial_over_a_cap_against_samples(threshold):
    rng = np.random.default_rng(0)
    d, u = 6, unit(rng, 3)

    def f(w):
        return np.stack([w[:, 0] * w[:, 1] * w[:, 2] + w[:, 0], w[:, 2] ** 2], axis=1)

    w = directions(rng, 40000, d)[:, :3]
    assert sampled_mean(f(w) * (w @ u >= threshold)[:, None], cap_mean(f, u, d, 3, threshold)) > 0
