"""The teacher's closed forms against exact quadrature, finite differences and Monte-Carlo in standard errors."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.polynomial import hermite_e
from scipy.special import eval_hermitenorm
from scipy.stats import beta, kstest

from tests.oracles import to_numpy
from tests.strategies import generators, links, models, named_links, orthonormal_columns
from theory.multi_index import (
    LINKS,
    HermiteLink,
    MultiIndexModel,
    as_backend,
    draw_index,
    draw_model,
    make_link,
    residual_second_moment,
)

NODES = 8  # exact to degree 15 in each variable; the drawn links have degree <= 4


def grid(r):
    """Tensor Gauss-Hermite nodes (n, r) and weights (n,) of N(0, I_r)."""
    z, w = hermite_e.hermegauss(NODES)
    points = np.array(list(itertools.product(z, repeat=r)))
    weights = np.array([math.prod(p) for p in itertools.product(w / math.sqrt(2 * math.pi), repeat=r)])
    return points, weights


def size(link):
    return sum(abs(c) for c, _ in link.terms)


@given(link=links(), rng=generators)
def test_value_is_the_sum_of_products(xp, link, rng):
    z = rng.standard_normal((5, link.r))
    expected = sum(
        c * np.prod([eval_hermitenorm(k, z[:, j]) / math.sqrt(math.factorial(k)) for j, k in enumerate(orders)], axis=0)
        for c, orders in link.terms
    )
    found = link(xp.asarray(z))
    assert found.dtype == xp.float64
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-12, atol=1e-12 * size(link))


@given(link=links())
def test_moments_are_those_of_quadrature(link):
    z, w = grid(link.r)
    g = link(z)
    tolerance = 1e-11 * size(link)
    assert abs(link.mean - w @ g) < tolerance
    assert abs(link.variance - w @ (g - w @ g) ** 2) < tolerance * size(link)
    np.testing.assert_allclose(link.linear, (w * g) @ z, atol=tolerance)
    stein = np.einsum("n,ni,nj->ij", w * g, z, z) - (w @ g) * np.eye(link.r)
    np.testing.assert_allclose(link.hessian, stein, atol=10 * tolerance)
    residual = g - w @ g - z @ ((w * g) @ z)
    assert abs(residual_second_moment(link, 0.3) - w @ residual**2 - 0.09) < 10 * tolerance * size(link)


@given(link=links())
def test_residual_link_and_its_radial_moment(link):
    z, w = grid(link.r)
    assume(any(sum(orders) >= 2 for _, orders in link.terms))
    residual = link(z) - link.mean - z @ link.linear
    np.testing.assert_allclose(link.residual(z), residual, atol=1e-11 * size(link) * 100)
    expected = w @ (residual**2 * np.sum(z * z, axis=1))
    assert link.radial_moment == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(link=links())
def test_hessian_is_the_mean_of_finite_difference_hessians(link):
    z, w = grid(link.r)
    h = 1e-2
    steps = h * np.eye(link.r)
    mean = np.zeros((link.r, link.r))
    for i, j in itertools.product(range(link.r), repeat=2):
        corners = sum(si * sj * link(z + si * steps[i] + sj * steps[j]) for si in (1, -1) for sj in (1, -1))
        mean[i, j] = w @ corners / (4 * h * h)
    # The central difference is off by h^2 times a fourth derivative, at most sqrt(4!) on one variable.
    np.testing.assert_allclose(link.hessian, mean, atol=10 * h * h * size(link))


@given(link=links(), data=st.data())
def test_captured_variance_is_that_of_the_conditional_mean(link, data):
    """Var E[g | V^T z] by nested quadrature in a rotated basis."""
    keep = data.draw(orthonormal_columns(link.r))
    k = keep.shape[1]
    rest = np.linalg.svd(keep, full_matrices=True)[0][:, k:]
    (u, wu), (v, wv) = grid(k), (grid(link.r - k) if k < link.r else (np.zeros((1, 0)), np.ones(1)))
    z = (u @ keep.T)[:, None, :] + (v @ rest.T)[None, :, :]
    conditional = link(z.reshape(-1, link.r)).reshape(len(u), len(v)) @ wv
    expected = wu @ conditional**2 - (wu @ conditional) ** 2
    assert abs(link.captured_variance(keep) - expected) < 1e-10 * size(link) ** 2
    assert abs(link.captured_variance(np.eye(link.r)) - link.variance) < 1e-12 * size(link) ** 2


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("r", [1, 2, 4])
def test_named_links_agree_with_samples(name, r):
    """Mean, linear part, Hessian (Stein) and captured variance within 4.5 standard errors of 2e5 samples; unit variance exactly."""
    link = make_link(name, r)
    rng = np.random.default_rng([r, *name.encode()])
    z, w = rng.standard_normal((2, 200_000, r))
    g = link(z)
    keep = draw_index(r, max(1, r // 2), rng)
    twin = link((z - w) @ keep @ keep.T + w)  # shares V^T z with z, independent otherwise
    pairs = [(g, 0.0), (g * g, 1.0), (g * twin, link.captured_variance(keep))]
    pairs += [(g * z[:, i], link.linear[i]) for i in range(r)]
    pairs += [(g * (z[:, i] * z[:, j] - (i == j)), link.hessian[i, j]) for i in range(r) for j in range(i, r)]
    for samples, expected in pairs:
        assert abs(samples.mean() - expected) < 4.5 * samples.std() / math.sqrt(len(samples))
    assert link.mean == 0.0
    assert link.variance == pytest.approx(1.0, abs=1e-12)


@given(link=named_links(), extra=st.floats(0.5, 2.0))
def test_tau_and_kappa_are_spectral(link, extra):
    eigenvalues = np.linalg.eigvalsh(link.hessian)
    if np.min(np.abs(eigenvalues)) == 0.0:
        assert math.isinf(link.kappa)
        assert math.isnan(link.tau) == (np.max(np.abs(eigenvalues)) == 0.0)
        return
    assert link.tau == pytest.approx(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2), abs=1e-12)
    assert -1e-12 <= link.tau <= link.r * (1 + 1e-12)
    assert link.kappa == pytest.approx(1.0 / (np.min(np.abs(eigenvalues)) * math.sqrt(link.r)), rel=1e-9)
    scaled = HermiteLink(tuple((extra * c, orders) for c, orders in link.terms))
    assert scaled.tau == pytest.approx(link.tau, abs=1e-12)
    assert scaled.kappa == pytest.approx(link.kappa / extra, rel=1e-9)


def test_signs_set_tau():
    for r in (2, 4, 8):
        assert make_link("quadratic", r).tau == pytest.approx(0.0, abs=1e-12)
        assert make_link("quadratic-plus", r).tau == pytest.approx(r)
    assert math.isnan(make_link("odd", 3).tau), "the negative control has no expected Hessian"


@given(model=models(), rng=generators)
def test_teacher_sees_only_its_subspace(xp, model, rng):
    """f*(x) = f*(P x), and its mean Hessian is B A B^T: second differences along random directions, averaged by exact quadrature."""
    teacher = as_backend(model, xp, xp.float64)
    x = rng.standard_normal((6, model.d))
    inside = x @ model.B @ model.B.T
    scale = size(model.link) * (1 + np.max(np.abs(x))) ** 4
    np.testing.assert_allclose(to_numpy(teacher.clean(xp.asarray(x))), model.clean(inside), atol=1e-12 * scale)
    xi = rng.standard_normal(6)
    labels = to_numpy(teacher.labels(xp.asarray(x), xp.asarray(xi)))
    np.testing.assert_allclose(labels, model.clean(x) + model.noise * xi, atol=1e-12 * scale)

    z, w = grid(model.r)
    v, h = rng.standard_normal(model.d), 1e-2
    at = z @ model.B.T
    second = w @ (model.clean(at + h * v) - 2 * model.clean(at) + model.clean(at - h * v)) / h**2
    hessian = model.B @ model.link.hessian @ model.B.T
    assert abs(v @ hessian @ v - second) < 10 * h**2 * size(model.link) * np.sum(v**2) ** 2


@pytest.mark.parametrize(("d", "r"), [(1, 1), (2, 1), (3, 3), (6, 2)])
def test_index_matrix_is_haar(d, r):
    """Orthonormal; E B = 0, E B B^T = (r/d) I in standard errors; each squared entry Beta(1/2, (d-1)/2), left-rotated or not."""
    rng = np.random.default_rng([d, r])
    draws = np.stack([draw_index(d, r, rng) for _ in range(4000)])
    np.testing.assert_allclose(np.einsum("nij,nik->njk", draws, draws), np.broadcast_to(np.eye(r), (4000, r, r)), atol=1e-12)
    standard_error = math.sqrt(1 / d / 4000)
    assert np.max(np.abs(draws.mean(axis=0))) < 4.5 * standard_error
    projector = np.einsum("nij,nkj->nik", draws, draws)
    spread = projector.std(axis=0) / math.sqrt(4000)
    assert np.all(np.abs(projector.mean(axis=0) - r / d * np.eye(d)) <= 4.5 * spread + 1e-12)
    if d > 1:
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        for entries in (draws[:, 0, -1], (rotation @ draws)[:, 0, -1]):
            assert kstest(entries**2, beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-3


@given(rng=generators)
def test_drawn_model_has_the_named_link_and_noise(rng):
    model = draw_model(5, 2, "cubic", rng, 0.2)
    assert (model.d, model.r, model.noise, model.link) == (5, 2, 0.2, make_link("cubic", 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MultiIndexModel(np.eye(2, 3), make_link("cubic", 3)), "r=3 > d=2"),
        (
            lambda: MultiIndexModel(2.0 * np.eye(3, 2), make_link("cubic", 2)),
            r"off the identity by 3.0e\+00 \(B is 3 x 2\)",
        ),
        (lambda: MultiIndexModel(np.full((3, 2), np.nan), make_link("cubic", 2)), "orthonormal"),
        (lambda: MultiIndexModel(np.eye(3, 2), make_link("cubic", 3)), "r=2 columns, the link 3"),
        (lambda: MultiIndexModel(np.eye(3, 2), make_link("cubic", 2), -0.1), "noise=-0.1"),
        (lambda: MultiIndexModel(np.eye(3, 2), make_link("cubic", 2), math.nan), "noise=nan"),
        (lambda: draw_index(3, 4, np.random.default_rng(0)), "r=4, d=3"),
        (lambda: draw_index(3, 0, np.random.default_rng(0)), "r=0"),
        (lambda: make_link("sextic", 2), "unknown link 'sextic'; known: cross, cubic"),
        (lambda: make_link("cubic", 0), "r=0"),
        (lambda: HermiteLink(()), "at least one term"),
        (lambda: HermiteLink(((1.0, (1, 2)), (1.0, (1,)))), r"lengths=\[1, 2\]"),
        (lambda: HermiteLink(((1.0, ()),)), "one order per index direction"),
        (lambda: HermiteLink(((1.0, (-1, 2)),)), "orders must be >= 0"),
        (lambda: HermiteLink(((1.0, (2,)), (0.5, (2,)))), "same orders"),
        (lambda: make_link("cubic", 2)(np.ones((4, 3))), "r=2 index directions applied to 3"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
