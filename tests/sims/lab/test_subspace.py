"""Subspaces of point sets: planted ones are found, angles are those of planes that were turned by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from sims.lab.subspace import leading_subspace, principal_angles, singular_gap, singular_values

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, r=st.integers(1, 4), extra=st.integers(0, 20))
def test_a_planted_subspace_is_found(seed: int, r: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    d, m = 12, r + 1 + extra
    B = ortho_group.rvs(d, random_state=rng)[:, :r]
    X = rng.standard_normal((m, r)) @ B.T
    X += 1e-9 * np.linalg.norm(X, 2) * rng.standard_normal((m, d))
    if singular_values(X)[r - 1] < 1e-3 * singular_values(X)[0]:
        return  # the drawn coordinates happen to be nearly dependent: the subspace is not determined by them
    V = leading_subspace(X, r)
    assert pytest.approx(np.eye(r), abs=1e-12) == V.T @ V
    assert np.all(principal_angles(V, B) < 1e-4)
    assert singular_gap(singular_values(X), r) > 1e4


@given(seed=SEEDS, angle=st.floats(0.0, math.pi / 2))
def test_angles_of_a_turned_plane(seed: int, angle: float) -> None:
    Q = ortho_group.rvs(6, random_state=np.random.default_rng(seed))
    A = Q[:, :2]
    B = np.stack([3.0 * Q[:, 0], math.cos(angle) * Q[:, 1] + math.sin(angle) * Q[:, 2]], axis=1)
    assert principal_angles(A, B) == pytest.approx(np.array([0.0, angle]), abs=1e-7)


def test_what_is_not_determined_is_refused() -> None:
    X = np.outer(np.arange(1.0, 5.0), np.ones(3))
    with pytest.raises(FloatingPointError, match="rank below k = 2"):
        leading_subspace(X, 2)
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        leading_subspace(X, 4)
    with pytest.raises(FloatingPointError, match="1 entries"):
        singular_values(np.where(X == 4.0, np.nan, X)[[0, 1, 3], :1])
    with pytest.raises(ValueError, match="r \\+ 1"):
        singular_gap(np.array([2.0, 1.0]), 2)
    with pytest.raises(FloatingPointError, match="0/0"):
        singular_gap(np.array([2.0, 0.0, 0.0]), 2)
    assert singular_gap(np.array([2.0, 0.0]), 1) == math.inf
    assert singular_gap(np.array([6.0, 3.0, 1.0]), 2) == 3.0
