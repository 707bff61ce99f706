"""The test frame itself: shapes are checked at run time in every namespace, and every namespace is what it says."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from theory.multi_index import make_link
from theory.two_layer import value


def test_shapes_are_checked_under_test(xp):
    link = make_link("quadratic", 2)
    assert link(xp.ones((3, 2), dtype=xp.float64)).shape == (3,)
    with pytest.raises(TypeCheckError):
        link(xp.ones((3,), dtype=xp.float64))
    with pytest.raises(TypeCheckError):
        link(xp.ones((3, 2), dtype=xp.int64))


def test_axes_of_one_signature_must_agree(xp):
    from theory.multi_index import MultiIndexModel

    model = MultiIndexModel(xp.eye(3, 2, dtype=xp.float64), make_link("quadratic", 2), noise=1)  # an int is a float (PEP 484)
    with pytest.raises(TypeCheckError):
        model.labels(xp.ones((4, 3), dtype=xp.float64), xp.ones((5,), dtype=xp.float64))


def test_leaves_must_be_tuples():
    with pytest.raises(TypeCheckError):
        value([np.ones(2), np.ones((2, 3)), np.ones(2)], np.ones((4, 3)))
