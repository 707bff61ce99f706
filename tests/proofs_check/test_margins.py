"""Margins: signs, scales, and how often a true statement lands where."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from proofs_check.margins import COMPARISONS, FALSE_ALARM, LOWEST, SKEWED_ALARM, Z_LIMIT, closeness, frequency, sampled, sampled_mean


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5), st.floats(-3, 3))
def test_closeness_is_one_at_equality_and_falls_by_one_a_tolerance(values, off):
    x = np.array(values)
    assert closeness(x, x, 0.1) == 1.0
    assert closeness(x + off, x, 0.1) == pytest.approx(1.0 - abs(off) / 0.1, abs=1e-9)
    assert closeness(x + off, x, 0.1, scale=4.0) == pytest.approx(1.0 - abs(off) / 0.4, abs=1e-9)


def test_closeness_sees_the_worst_entry_and_a_zero_scale():
    assert closeness([0.0, 1.0], [0.0, 0.0], 1.0) == 0.0
    assert closeness([0.0, 1.0], [0.0, 0.5], 1.0, [0.0, 1.0]) == 0.5
    assert closeness([1e-300, 1.0], [0.0, 1.0], 1.0, [0.0, 1.0]) == LOWEST
    assert closeness(1e300, 0.0, 1e-12, 1e-5) == LOWEST
    assert closeness(math.nan, 0.0, 1.0) == LOWEST
    assert min(1.0, closeness([0.0, math.nan], 0.0, 1.0)) == LOWEST
    with pytest.raises(ValueError, match="empty"):
        closeness([], [], 1.0)


def test_the_limit_is_what_the_number_of_comparisons_asks_for():
    assert 2 * norm.sf(Z_LIMIT) * COMPARISONS == pytest.approx(FALSE_ALARM)
    assert 7.3 < Z_LIMIT < 7.6


def test_sampled_means_of_a_true_claim_are_normal_deviates():
    rng = np.random.default_rng(0)
    z = [Z_LIMIT * (1 - sampled_mean(rng.exponential(size=2000), 1.0)) for _ in range(500)]
    assert kstest(z, "halfnorm").pvalue > 1e-3


def refused_squares(n, shrunk, draws, rng):
    """(chance that the true mean of n squares of Gaussians is refused, its standard error), from draws of variance `shrunk` reweighted."""
    squares = shrunk * rng.standard_normal((draws, n)) ** 2
    weight = np.exp(0.5 * n * math.log(shrunk) + 0.5 * (1.0 / shrunk - 1.0) * squares.sum(axis=1))
    refused = np.array([sampled_mean(one, 1.0) <= 0 for one in squares]) * weight
    return refused.mean(), refused.std() / math.sqrt(draws)


@pytest.mark.parametrize(("n", "shrunk", "chance"), [(100, 0.55, 1.08e-5), (200, 0.58, SKEWED_ALARM), (1000, 0.76, 9.8e-10)])
def test_means_of_squares_are_refused_more_often_than_normal_ones(n, shrunk, chance):
    found, error = refused_squares(n, shrunk, 6000, np.random.default_rng(0))
    assert error < 0.1 * chance
    assert abs(found - chance) < 4 * error
    assert found > 1000 * FALSE_ALARM / COMPARISONS


def test_the_reweighted_draws_see_the_plain_frequency():
    """At 100 squares a lower limit is met often enough to be counted without any reweighting."""
    rng = np.random.default_rng(1)
    plain = np.array([Z_LIMIT * (1 - sampled_mean(rng.standard_normal(100) ** 2, 1.0)) > 4.0 for _ in range(20_000)])
    squares = 0.75 * rng.standard_normal((6000, 100)) ** 2
    weight = np.exp(50 * math.log(0.75) + squares.sum(axis=1) / 6.0)
    tilted = weight * [Z_LIMIT * (1 - sampled_mean(one, 1.0)) > 4.0 for one in squares]
    error = math.hypot(plain.std() / math.sqrt(len(plain)), tilted.std() / math.sqrt(len(tilted)))
    assert 0 < abs(plain.mean() - tilted.mean()) < 4 * error
    assert plain.mean() > 20 * 2 * norm.sf(4.0)


def test_sampled_mean_catches_a_shift_and_allows_constants():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 2)) + np.array([0.0, 0.5])
    assert sampled_mean(x, np.array([0.0, 0.5])) > 0 > -1 > sampled_mean(x, np.array([0.0, 0.0]))
    assert sampled_mean(np.full(1000, 0.1), 0.1) > 0
    assert sampled(np.array([1.0, 1.1]), np.array([1.0, 1.0]), 0.1) == pytest.approx(1 - 1 / Z_LIMIT)
    with pytest.raises(ValueError, match="100 samples"):
        sampled_mean(np.zeros(99), 0.0)


@given(st.integers(100, 5000), st.floats(0.05, 0.95))
def test_frequency_is_the_normal_deviate_of_a_count(n, p):
    hits = min(n, round(n * p + 3 * math.sqrt(n * p * (1 - p))))
    deviate = (hits - n * p) / math.sqrt(n * p * (1 - p))
    assert Z_LIMIT * (1 - frequency(hits, n, p)) == pytest.approx(deviate, rel=0.25)


def test_frequency_at_the_ends():
    assert frequency(0, 4000, 0.0) > 0
    assert frequency(0, 4000, -1e-17) > 0
    assert frequency(1, 4000, 0.0) < -1
    assert frequency(4000, 4000, 0.5) < -1
    assert frequency(2000, 4000, 0.5) == 1.0
