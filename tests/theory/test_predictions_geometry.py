"""Closed forms of theory.geometry: each against its limit and against a small Monte-Carlo in standard errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import named_links
from theory import geometry, predictions
from theory.multi_index import draw_index, make_link

N = 4 * 32**2


@given(link=named_links(4), d=st.sampled_from((16, 40)), noise=st.sampled_from((0.0, 0.7)))
def test_energies_along_directions_add_up_to_those_on_the_subspace(link, d, noise):
    if link.degree > 3:
        return
    along = geometry.direction_energies(link, noise, d, N)
    assert along.rows.sum() == pytest.approx(predictions.teacher_rows(link, noise, d, N).on, rel=1e-9)
    assert along.points.sum() == pytest.approx(predictions.distilled_points(link, noise, d, N).on, rel=1e-9)


def test_a_lost_direction_holds_noise_alone():
    link = make_link("lost", 3)
    for n in (10**4, 10**6):
        along = geometry.direction_energies(link, 0.0, 32, n).rows
        assert along[-1] < 0.1 * along[0]
    assert along[-1] / along[0] == pytest.approx(0.0, abs=2e-3)


@given(link=named_links(3))
def test_alignment_is_a_cosine_and_tends_to_one(link):
    if not np.any(link.hessian):
        return
    values = [geometry.alignment(link, 0.2, d, n) for d, n in ((16, 256), (16, 10**9), (512, 10**12))]
    assert 0 < values[0] < values[1] < values[2] <= 1 + 1e-9
    assert values[2] > 1 - 0.5 / 16


def test_points_that_keep_their_start_go_from_the_increment_to_the_start():
    link, d = make_link("quadratic-plus", 2), 32
    for k in (None, 64):
        points = predictions.distilled_points(link, 0.0, d, N, k)
        none = geometry.moved_points(link, 0.0, d, N, k, 0.0)
        assert (none.on, none.off) == (points.on, points.off)
        assert geometry.moved_points(link, 0.0, d, N, k, 1e3).fraction == pytest.approx((d - 2) / d, rel=1e-2)


@given(link=named_links(3), m1=st.sampled_from((2, 10)))
def test_diversity_without_a_common_part_is_that_of_independent_points(link, m1):
    assert geometry.diversity(link, 0.0, 32, N, None, m1) == pytest.approx(1.0 / (m1 - 1))
    assert geometry.diversity(link, 0.0, 32, N, 10**9, m1) == pytest.approx(1.0 / (m1 - 1), rel=1e-5)


def test_diversity_tends_to_its_leading_form_like_1_over_d():
    link, gaps = make_link("quadratic", 3), []
    for d in (256, 1024):
        exact = geometry.diversity(link, 0.0, d, 64 * d**3, 2 * d, 10**6)
        gaps.append(abs(exact / predictions.diversity_ratio(d, 2 * d, 10**6) - 1.0))
    assert gaps[1] < 0.3 * gaps[0] < 0.01


def test_angles_shrink_with_points_and_samples_and_need_a_full_hessian():
    link = make_link("quadratic", 3)
    values = [geometry.angle_tangents(link, 0.0, 32, n, m1) for n, m1 in ((N, 8), (N, 64), (16 * N, 64))]
    assert values[0] > values[1] > values[2] > 0
    for bad, m1 in ((make_link("lost", 3), 16), (link, 4)):
        with pytest.raises(ValueError, match="angles need M1 > r"):
            geometry.angle_tangents(bad, 0.0, 32, N, m1)


@given(eigenvalues=st.lists(st.floats(0.01, 5.0), min_size=2, max_size=6))
def test_rayleigh_mean_lies_between_mean_and_maximum_and_is_homogeneous(eigenvalues):
    values = np.array(eigenvalues)
    mean = geometry.rayleigh_mean(values)
    assert values.mean() * (1 - 1e-6) <= mean <= values.max() * (1 + 1e-6)
    assert geometry.rayleigh_mean(3.0 * values) == pytest.approx(3.0 * mean, rel=1e-6)


def test_rayleigh_mean_is_that_of_samples():
    values = np.array([0.05, 0.4, 1.0, 3.0])
    w2 = np.random.default_rng(0).standard_normal((200_000, 4)) ** 2
    draws = w2 @ values**2 / (w2 @ values)
    assert abs(draws.mean() - geometry.rayleigh_mean(values)) < 4 * draws.std() / math.sqrt(len(draws))


def test_noise_of_retrained_rows_tends_to_the_isotropic_form():
    for r in (1, 4, 9):
        assert geometry.retrained_noise(np.ones(r), 10**6, 50) == pytest.approx(predictions.retrained_noise(r, 50), rel=1e-4)


@pytest.mark.parametrize("link", ["quadratic", "graded"])
def test_noise_of_a_retrained_row_against_samples(link):
    """One direction w at a time: the mean and the spread of x 1{w.x >= 0} for x = A u, u uniform in R^d."""
    d, r, rng = 24, 4, np.random.default_rng(0)
    a = make_link(link, r).hessian
    signal, total = [], []
    for _ in range(300):
        u = rng.standard_normal((2, 4000, d))
        x = (u / np.linalg.norm(u, axis=-1, keepdims=True))[..., :r] @ a
        gated = x * (x @ rng.standard_normal(r) >= 0)[..., None]
        signal.append(float(gated[0].mean(axis=0) @ gated[1].mean(axis=0)))
        total.append(float(np.mean(np.sum(gated**2, axis=-1))))
    ratio = (np.array(total) / np.mean(signal)).mean() - 1.0
    error = (ratio + 1.0) * np.std(signal) / np.mean(signal) / math.sqrt(len(signal))
    assert abs(ratio - geometry.retrained_noise(np.linalg.eigvalsh(a) ** 2, d, 1)) < 4 * error
    assert error < 0.04 * ratio


def test_error_of_a_head_is_the_part_outside_a_random_row_space():
    rng, width, m2, errors = np.random.default_rng(0), 40, 30, []
    for _ in range(400):
        head, phi = rng.standard_normal(width), rng.standard_normal((m2, width))
        errors.append(np.sum((np.linalg.lstsq(phi, phi @ head)[0] - head) ** 2) / np.sum(head**2))
    error = np.std(errors) / math.sqrt(len(errors))
    assert abs(np.mean(errors) - geometry.head_error(m2, width) ** 2) < 4 * error
    assert geometry.head_error(width, width) == geometry.head_error(2 * width, width) == 0.0


@given(link=named_links(4), seed=st.integers(0, 50), k=st.integers(0, 4))
def test_no_subspace_explains_more_than_the_bound(link, seed, k):
    k = min(k, link.r)
    bound = geometry.least_unexplained(link, k)
    assert 0.0 <= bound <= 1.0
    residual = link.residual
    captured = residual.captured_variance(draw_index(link.r, k, np.random.default_rng(seed))) if k else 0.0
    assert (residual.variance - captured) / link.variance >= bound - 1e-9


@pytest.mark.parametrize("name", ["quadratic", "cubic-plus", "quartic"])
def test_the_bound_is_met_by_axes_where_tensors_are_orthogonal(name):
    link = make_link(name, 5)
    for k in (1, 3):
        assert (
            geometry.least_unexplained(link, k) == pytest.approx(1.0 - link.captured_variance(np.eye(5)[:, :k])) == pytest.approx(1 - k / 5)
        )


def test_finite_width_moves_the_eigenvalues_of_a_sample():
    """Rows of one norm: eigenvalues of (1/L) sum F F^T for F = C u, u uniform on the sphere times sqrt(r)."""
    rng, limit, width = np.random.default_rng(0), np.array([1.0, 2.0, 4.0, 12.0]), 200
    seen = []
    for _ in range(3000):
        u = rng.standard_normal((width, 4))
        f = u / np.linalg.norm(u, axis=1, keepdims=True) * 2.0 * np.sqrt(limit)
        seen.append(np.linalg.eigvalsh(f.T @ f / width))
    mean, error = np.mean(seen, axis=0), np.std(seen, axis=0) / math.sqrt(len(seen))
    expected = geometry.finite_width(limit, width)
    assert np.all(np.abs(mean - expected) < 4 * error + limit * (4 / width) ** 1.5)
    assert np.any(np.abs(mean - limit) > 4 * error + limit * (4 / width) ** 1.5), "the correction is seen"
