"""The gradient subspace: the estimate against its U-statistic, the null against every sign pattern, ranks against planted ones."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.strategies import generators
from theory import gradient_subspace as gs
from theory import predictions, two_layer
from theory.gradient_subspace import Estimate, block_rows, captured, draw_neurons, estimate, fresh_estimates, gradient_rows
from theory.multi_index import draw_model

blocks_of_rows = st.tuples(st.sampled_from([4, 6]), st.integers(1, 3), st.integers(2, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-3, 3, width=32))
)


def planted_rows(link: str, d: int, r: int, n: int, seed: int, *, k: int = 300, blocks: int = 20, noise: float = 0.2):
    """(block gradients, B) of a task with Haar-random S*."""
    rng = np.random.default_rng(seed)
    model = draw_model(d, r, link, rng, noise)
    z = rng.standard_normal((n, d))
    y = model.labels(z, rng.standard_normal(n))[:, None]
    return block_rows(draw_neurons(d, 1, k, rng), z, y, blocks), model.B


@given(blocks_of_rows)
def test_the_moment_is_the_mean_over_pairs_of_different_blocks(rows):
    """Unbiased: independent blocks meet, no block meets itself."""
    blocks, k, _ = rows.shape
    pairs = sum(rows[a].T @ rows[b] for a in range(blocks) for b in range(blocks) if a != b) / (blocks * (blocks - 1) * k)
    found = estimate(rows, np.random.default_rng(0), draws=20)
    assert np.allclose((found.basis * found.values) @ found.basis.T, pairs, rtol=0, atol=1e-12)


@given(blocks_of_rows, generators)
def test_flipped_means_hold_no_signal_and_exactly_the_noise(rows, rng):
    blocks, k, d = rows.shape
    covariance = gs._covariance(rows)
    patterns = [np.where(np.isin(range(blocks), chosen), 1.0, -1.0) for chosen in combinations(range(blocks), blocks // 2)]
    flipped = [np.tensordot(signs, rows, axes=1) / blocks for signs in patterns]
    assert np.allclose(sum(n.T @ n for n in flipped) / (k * len(flipped)), covariance, rtol=0, atol=1e-12)
    shifted = rows + rng.standard_normal((k, d))
    for a, b in zip(gs._noise(rows, np.random.default_rng(1), 3), gs._noise(shifted, np.random.default_rng(1), 3), strict=True):
        assert all(np.allclose(x, y, rtol=0, atol=1e-11) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("link", ["quadratic-plus", "cubic", "cross"])
def test_the_moment_is_that_of_the_mean_hessian(link):
    """G = H^2 / (2 pi d) for links of degree <= 3, on S* and off it, in standard errors over tasks; blockwise least squares shrinks it."""
    d, r, n = 16, 3, 4096
    on, off = [], []
    for seed in range(60):
        rows, index = planted_rows(link, d, r, n, seed, k=64)
        found = estimate(rows, np.random.default_rng(0), draws=1)
        inside = np.sum((index.T @ found.basis) ** 2, axis=0)
        on.append(found.values @ inside)
        off.append(found.values @ (1 - inside))
    hessian = draw_model(d, r, link, np.random.default_rng(0)).link.hessian
    expected = np.sum(hessian**2) / (2 * np.pi * d) * predictions.signal_shrinkage(d, n // 20, "ols") ** 2
    for values, value in ((on, expected), (off, 0.0)):
        assert abs(np.mean(values) - value) < 4 * np.std(values, ddof=1) / np.sqrt(len(values))
    assert np.std(on, ddof=1) / np.sqrt(60) < 0.03 * expected
    assert np.std(off, ddof=1) / np.sqrt(60) < 0.03 * expected


@pytest.mark.parametrize("link", ["quadratic", "quadratic-plus", "cubic", "cross", "graded"])
@pytest.mark.parametrize("r", [1, 3, 5])
def test_the_planted_rank_is_found(link, r):
    d = 24
    rows, index = planted_rows(link, d, r, 48 * d * d, seed=r)
    found = estimate(rows, np.random.default_rng(0))
    ranks = [again.rank for again in fresh_estimates(rows, found, np.random.default_rng(1))]
    assert found.rank == r
    assert np.quantile(ranks, 0.025) <= r <= np.quantile(ranks, 0.975)
    assert gs.overlap(found.found, index) > 0.9
    assert 1 <= found.effective_rank <= r


def test_equal_directions_weigh_alike_and_graded_ones_do_not():
    """r_eff of H^2: r for signs +-1; for `graded` the participation of the squared entries, known in closed form."""
    d, r = 24, 4
    for link in ("quadratic", "graded"):
        rows, _ = planted_rows(link, d, r, 96 * d * d, seed=7)
        a = draw_model(d, r, link, np.random.default_rng(0)).link.hessian
        found = estimate(rows, np.random.default_rng(0))
        expected = gs.participation(np.diag(a) ** 2)
        ranks = [again.effective_rank for again in fresh_estimates(rows, found, np.random.default_rng(1))]
        assert np.quantile(ranks, 0.025) <= found.effective_rank <= np.quantile(ranks, 0.975)
        assert found.effective_rank == pytest.approx(expected, rel=0.1)
        assert found.subspace.shape == (d, np.ceil(expected))


def test_what_the_first_gradient_cannot_see_is_not_found():
    """The negative controls of the links: an odd one has no mean Hessian, `lost` misses one direction."""
    d = 24
    for link, seen in (("odd", 0), ("lost", 2)):
        rows, _ = planted_rows(link, d, 3, 48 * d * d, seed=1)
        assert estimate(rows, np.random.default_rng(0)).rank == seen


def test_a_task_without_subspace_shows_none():
    """False alarms: at most 12 of 100 at a rate of 5 % (a binomial count exceeds that once in 700 times)."""
    d, alarms = 12, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        z, y = rng.standard_normal((800, d)) * np.linspace(0.5, 2.0, d), rng.standard_normal((800, 2))
        rows = block_rows(draw_neurons(d, 2, 60, rng), z, y * (1 + z[:, :1] ** 2), 20)
        alarms += estimate(rows, rng, draws=60).rank > 0
    assert alarms <= 12


@given(generators, st.integers(2, 6), st.integers(1, 4))
def test_captured_share(rng, d, p):
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    u, _ = np.linalg.qr(rng.standard_normal((d, min(p, d))))
    values = np.sort(rng.uniform(0.5, 2.0, d))[::-1]
    task = Estimate(values, basis, cut=1e-3)
    assert 0 <= captured(u, task) <= 1 + 1e-12
    assert captured(basis, task) == pytest.approx(1.0)
    assert captured(basis[:, :1], task) == pytest.approx(values[0] / values.sum())
    equal = task._replace(values=np.ones(d))
    assert captured(u, equal) == pytest.approx(gs.overlap(u, basis)) == pytest.approx(u.shape[1] / d)


def test_rows_are_gradients_of_the_two_layer_network(xp):
    """At a start whose output is zero, d loss / d w_i = -a_i g_i for one output (theory.two_layer)."""
    rng = np.random.default_rng(5)
    z, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    a, w, b = two_layer.symmetric_init(4, 6, rng)
    _, expected, _ = two_layer.gradient((a, w, b), (z, y))
    neurons = gs.Neurons(xp.asarray(w), xp.asarray(a[:, None]))
    rows = gradient_rows(neurons, xp.asarray(z), xp.asarray(y[:, None]))
    assert np.allclose(np.asarray(rows), -expected, rtol=0, atol=1e-12)


def test_refusals():
    neurons, z = draw_neurons(3, 1, 4, np.random.default_rng(0)), np.ones((8, 3))
    for blocks in (0, 2, 5, 4):
        with pytest.raises(ValueError, match=f"blocks={blocks}"):
            block_rows(neurons, z, np.ones((8, 1)), blocks)
    with pytest.raises(ValueError, match="'none'"):
        block_rows(neurons, z, np.ones((8, 1)), 4, "none")
    with pytest.raises(ValueError, match="C=0"):
        draw_neurons(3, 0, 4, np.random.default_rng(0))
    rows = np.zeros((4, 2, 3))
    rows[1, 0, 2] = np.nan
    with pytest.raises(FloatingPointError, match="1 entries"):
        estimate(rows, np.random.default_rng(0))
