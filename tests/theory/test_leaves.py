"""Leaves behave as the flat vector that they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import to_numpy
from tests.strategies import generators
from theory.distill import leaves as lv

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4)


def flat(x):
    return np.concatenate([to_numpy(a).ravel() for a in x])


@given(shapes=shapes, rng=generators, alpha=st.floats(-4.0, 4.0))
def test_operations_are_those_of_the_flat_vector(xp, shapes, rng, alpha):
    x, y = (tuple(xp.asarray(rng.standard_normal(shape)) for shape in shapes) for _ in range(2))
    np.testing.assert_array_equal(flat(lv.add(x, y)), flat(x) + flat(y))
    np.testing.assert_array_equal(flat(lv.scale(alpha, x)), alpha * flat(x))
    np.testing.assert_allclose(flat(lv.axpy(alpha, x, y)), alpha * flat(x) + flat(y), rtol=1e-15, atol=1e-15)
    assert not flat(lv.zeros_like(x)).any()
    assert lv.size(x) == flat(x).size
    size = np.linalg.norm(flat(x)) * np.linalg.norm(flat(y))
    assert abs(float(lv.dot(x, y)) - flat(x) @ flat(y)) <= 1e-14 * size
    assert lv.norm(x) == pytest.approx(np.linalg.norm(flat(x)), rel=1e-14)


def test_tuples_of_other_lengths_are_refused():
    x = (np.ones(2),)
    for operation in (lv.add, lv.dot, lambda a, b: lv.axpy(1.0, a, b)):
        with pytest.raises(ValueError, match=r"zip\(\)"):
            operation(x, x + x)
