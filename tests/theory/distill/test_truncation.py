"""Window policies: the conformance suite, the law of random starts, and what construction refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.conformance import PolicyCase, WindowPolicyConformance
from tests.strategies import generators
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, Window


class TestFullWindow(WindowPolicyConformance):
    @staticmethod
    def cases():
        return st.integers(1, 300).map(lambda t: PolicyCase(FullWindow(t), (Window(0, t),), (t, t)))


class TestFixedWindow(WindowPolicyConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        horizon = draw(st.integers(1, 300))
        length = draw(st.integers(1, horizon))
        start = draw(st.one_of(st.none(), st.integers(0, horizon - length)))
        first = horizon - length if start is None else start
        return PolicyCase(FixedWindow(horizon, length, start), (Window(first, first + length),), (length, length))


class TestRandomWindow(WindowPolicyConformance):
    @staticmethod
    @st.composite
    def cases(draw):
        horizon = draw(st.integers(1, 300))
        length = draw(st.integers(max(1, horizon - 12), horizon))
        first = draw(st.integers(0, horizon - length))
        ends = (Window(first, first + length), Window(horizon - length, horizon))
        return PolicyCase(RandomWindow(horizon, length, first), ends, (length, length))


@pytest.mark.parametrize(("horizon", "length", "first"), [(20, 5, 0), (20, 5, 7), (200, 40, 0), (10, 9, 0)])
def test_random_starts_are_uniform(horizon, length, first):
    """Chi-square over {first, ..., T - M}; with 100 draws a cell a mass misplaced by a third of one cell in twenty shows."""
    cells = horizon - length - first + 1
    rng = np.random.default_rng([horizon, length, first])
    policy = RandomWindow(horizon, length, first)
    counts = np.bincount([policy.draw(rng).start - first for _ in range(100 * cells)], minlength=cells)
    assert counts.shape == (cells,)
    assert counts[0] > 0
    assert counts[-1] > 0
    assert chisquare(counts).pvalue > 1e-3


@given(seed=st.integers(0, 2**32 - 1), spread=st.integers(0, 4), first=st.integers(0, 3), rest=st.integers(0, 20))
def test_random_lengths_keep_to_their_spread_and_no_spread_is_no_draw(seed, spread, first, rest):
    horizon, length = 5 + spread + first + rest, 5
    windows = [RandomWindow(horizon, length, first, spread).draw(np.random.default_rng([seed, k])) for k in range(20)]
    assert all(first <= w.start < w.stop <= horizon and abs(w.length - length) <= spread for w in windows)
    if spread == 0:
        starts = [int(np.random.default_rng([seed, k]).integers(first, horizon - length + 1)) for k in range(20)]
        assert windows == [Window(start, start + length) for start in starts]


def test_random_lengths_and_the_starts_of_each_are_uniform():
    rng, policy = np.random.default_rng(3), RandomWindow(12, 5, 1, 2)
    drawn = [policy.draw(rng) for _ in range(5000)]
    assert chisquare(np.bincount([w.length - 3 for w in drawn])).pvalue > 1e-3
    for length in range(3, 8):
        counts = np.bincount([w.start - 1 for w in drawn if w.length == length], minlength=12 - length)
        assert len(counts) == 12 - length
        assert chisquare(counts).pvalue > 1e-4


@given(horizon=st.integers(1, 50), rng=generators)
def test_window_as_long_as_the_unroll_is_the_full_one(horizon, rng):
    assert {RandomWindow(horizon, horizon).draw(rng), FixedWindow(horizon, horizon).draw(rng)} == {FullWindow(horizon).draw(rng)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FullWindow(0), "horizon=0"),
        (lambda: FixedWindow(5, 6), "horizon=5 steps: length=6"),
        (lambda: FixedWindow(5, 0), "length=0"),
        (lambda: FixedWindow(5, 3, 3), r"\[0, 2\]: start=3"),
        (lambda: FixedWindow(5, 3, -1), "start=-1"),
        (lambda: RandomWindow(5, 6), "length=6"),
        (lambda: RandomWindow(5, 3, 3), "start=3"),
        (lambda: RandomWindow(5, 3, 0, 3), "length=0"),
        (lambda: RandomWindow(5, 3, 1, 2), r"\[0, 0\]: start=1"),
        (lambda: RandomWindow(5, 3, 0, -1), "spread=-1"),
        (lambda: Window(2, 2), "start=2, stop=2"),
        (lambda: Window(-1, 2), "start=-1"),
    ],
)
def test_impossible_windows_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
