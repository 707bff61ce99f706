"""Float counts of the representations, and the budgets at which they meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import memory

counts = st.integers(0, 10**6)


@given(m1=counts, d=counts, m2=counts)
def test_distilled_set_counts_each_stored_float_once(m1, d, m2):
    constant, labelled = memory.distilled(m1, d, m2), memory.distilled(m1, d, m2, constant_label=False)
    assert constant.floats == m1 * d + m2
    assert labelled.floats - constant.floats == m1
    assert constant.bytes == 8 * constant.floats
    assert memory.distilled(m1, d, m2, bytes_per_float=4).bytes == 4 * constant.floats


@given(r=st.integers(1, 50), d=counts, width=counts)
def test_the_bound_is_the_count_at_r_squared_points(r, d, width):
    assert memory.distilled(r * r, d, width).floats == r * r * d + width
    assert memory.weights(width, d).floats == width * d + 2 * width
    assert memory.subspace(r, d).floats == r * d


@given(floats=counts, d=st.integers(0, 1000))
def test_raw_points_fill_the_budget(floats, d):
    n = memory.raw_points_for(floats, d)
    assert memory.raw_subset(n, d).floats <= floats < memory.raw_subset(n + 1, d).floats


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: memory.distilled(-1, 2, 3), "M1=-1"),
        (lambda: memory.distilled(1, 2, -3), "M2=-3"),
        (lambda: memory.raw_subset(-1, 2), "n=-1"),
        (lambda: memory.weights(2, -1), "d=-1"),
        (lambda: memory.subspace(-2, 1), "r=-2"),
        (lambda: memory.raw_points_for(-5, 1), "floats=-5"),
    ],
)
def test_negative_counts_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
