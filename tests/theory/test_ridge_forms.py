"""Forms that retrained rows build: counts against ranks, lost shares against sampled spans."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import seeds
from theory.ridge_forms import captured_quadratic, lost_at_r_points, ridge_forms, symmetric_forms


def powers(rows: np.ndarray, q: int) -> np.ndarray:
    """The q-th tensor power of each row, flat."""
    out = rows
    for _ in range(q - 1):
        out = np.einsum("na,nb->nab", out, rows).reshape(len(rows), -1)
    return out


def patterns(points: np.ndarray, reflected: bool, rng: np.random.Generator) -> np.ndarray:
    """Gate patterns that neurons meet: all of them at M = r, the sampled ones beyond."""
    m, r = points.shape
    gates = (
        np.array(list(itertools.product((0, 1), repeat=m))) if m == r else np.unique(rng.standard_normal((9000, r)) @ points.T >= 0, axis=0)
    )
    return 2.0 * gates - 1.0 if reflected else gates.astype(float)


def rank(points: np.ndarray, q: int, reflected: bool, rng: np.random.Generator) -> int:
    forms = powers(patterns(points, reflected, rng) @ points, q)
    values = np.linalg.svdvals(forms / np.abs(forms).max())
    return int(np.sum(values > 1e-9 * values[0]))


@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), seeds)
def test_counts_are_ranks_at_r_points(r, q, reflected, seed):
    rng = np.random.default_rng(seed)
    points = np.linalg.qr(rng.standard_normal((r, r)))[0] * rng.uniform(0.5, 2, (r, 1))
    assert rank(points, q, reflected, rng) == ridge_forms(r, q, reflected) <= symmetric_forms(r, q)


@given(st.integers(2, 20))
def test_what_is_missing_at_r_points(r):
    assert ridge_forms(r, 2, False) == symmetric_forms(r, 2)
    assert symmetric_forms(r, 2) - ridge_forms(r, 2, True) == r - 1
    assert symmetric_forms(r, 3) - ridge_forms(r, 3, False) == math.comb(r, 2)
    assert symmetric_forms(r, 3) - ridge_forms(r, 3, True) == 2 * math.comb(r, 2)


@pytest.mark.parametrize("r", [2, 3, 4])
def test_one_more_point_gives_every_quadratic_form(r):
    rng = np.random.default_rng(r)
    points = rng.standard_normal((r + 1, r))
    assert rank(points, 2, True, rng) == symmetric_forms(r, 2)
    assert rank(points[:r], 2, True, rng) == symmetric_forms(r, 2) - (r - 1)


@pytest.mark.parametrize(("r", "m"), [(4, 1), (4, 3), (6, 2)])
@pytest.mark.parametrize("plus", [False, True])
def test_captured_share_of_a_quadratic_is_that_of_sampled_spans(r, m, plus):
    rng = np.random.default_rng(10 * r + m)
    a = np.eye(r) if plus else np.diag([1.0, -1.0] * (r // 2))
    q = np.linalg.qr(rng.standard_normal((4000, r, m)))[0]
    inner = np.swapaxes(q, 1, 2) @ a @ q
    shares = np.sum(inner**2, axis=(1, 2)) / np.sum(a * a)
    tau = np.trace(a) ** 2 / np.sum(a * a)
    error = shares.std() / math.sqrt(len(shares))
    assert abs(shares.mean() - captured_quadratic(r, m, tau)) <= 4 * error + 1e-12
    # Negative control: the share of the other trace.
    assert abs(shares.mean() - captured_quadratic(r, m, r - tau)) > 8 * error


@given(st.integers(1, 30), st.floats(0, 1))
def test_all_of_a_quadratic_is_in_reach_of_r_points(r, share):
    assert captured_quadratic(r, r, share * r) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=f"M1={r + 1}, r={r}"):
        captured_quadratic(r, r + 1, 0.0)


@pytest.mark.parametrize("r", [2, 4, 8])
def test_lost_share_at_r_reflected_points_stays_under_its_bound(r):
    """Missing forms X^-1 D X^-T, tr D = 0, of r Gaussian points; the identity's own missing share is what the bound leaves out."""
    rng, a = np.random.default_rng(r), np.diag([(-1.0) ** j for j in range(r)]).ravel() / math.sqrt(r)
    lost, identity = [], []
    for _ in range(300):
        inverse = np.linalg.inv(rng.standard_normal((r, r)))
        missing = np.stack([(inverse @ np.diag(row) @ inverse.T).ravel() for row in np.eye(r)[:-1] - np.eye(r)[1:]], axis=1)
        basis = np.linalg.qr(missing)[0]
        lost.append(float(np.sum((basis.T @ a) ** 2)))
        identity.append(float(np.sum((basis.T @ np.eye(r).ravel()) ** 2)) / r)
    error = np.std(lost) / math.sqrt(len(lost))
    assert np.mean(lost) <= lost_at_r_points(r) + 3 * error
    exact = lost_at_r_points(r) * (1 - np.mean(identity) / (r - 1))
    assert abs(np.mean(lost) - exact) <= 4 * error + 2 * np.std(identity) / (r * math.sqrt(len(lost)))
    assert lost_at_r_points(1) == 0
