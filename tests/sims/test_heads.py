"""The second layer: the ridge path against plain solves, the choice of a penalty, and the labels that carry a head exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims import heads
from sims.scaling.trials import head_error
from tests.strategies import distilled_sets, generators, seeds, thetas
from theory import two_layer
from theory.distill.problem import Diverged
from theory.multi_index import draw_index


@given(st.data(), thetas())
def test_features_and_a_head_are_the_network(data, theta):
    a, w, b = theta
    x, _ = data.draw(distilled_sets(w.shape[1]))
    np.testing.assert_allclose(heads.features(w, b, x) @ a, two_layer.value(theta, x), rtol=1e-12)
    np.testing.assert_array_equal(heads.features(w, b, x), np.where(x @ w.T + b > 0, x @ w.T + b, 0.0))


@st.composite
def regressions(draw):
    """(phi, y): any small shape, also with fewer samples than features and with repeated features."""
    n, width, rng = draw(st.integers(1, 12)), draw(st.integers(1, 8)), draw(generators)
    phi = np.maximum(rng.standard_normal((n, width)), 0.0) + 1e-3 * rng.standard_normal((n, width))
    if draw(st.booleans()):
        phi[:, -1] = phi[:, 0]
    return phi, rng.standard_normal(n)


@given(regressions())
def test_the_path_solves_the_ridge_equations(case):
    """(Phi^T Phi / n + lambda t I) a = Phi^T y / n with t = tr(Phi^T Phi) / (n L), at every penalty, from one decomposition."""
    phi, y = case
    n, width = phi.shape
    path = heads.ridge_path(phi, y)
    mean = np.trace(phi.T @ phi) / (n * width)
    assert path.shape == (width, len(heads.PENALTIES))
    for head, penalty in zip(path.T, heads.PENALTIES, strict=True):
        system = phi.T @ phi / n + penalty * mean * np.eye(width)
        solved = np.linalg.solve(system, phi.T @ y / n)
        np.testing.assert_allclose(head, solved, atol=1e-13 / penalty * (np.linalg.norm(y) + np.linalg.norm(solved)))


@given(regressions())
def test_a_larger_penalty_means_a_smaller_head_and_a_larger_error(case):
    phi, y = case
    path = heads.ridge_path(phi, y)
    sizes, errors = np.linalg.norm(path, axis=0), heads.risks(phi, path, y)
    assert np.all(np.diff(sizes) <= 1e-6 * sizes[0])
    assert np.all(np.diff(errors) >= -1e-6)
    assert errors[-1] <= 1.0 + 1e-12, "no head is worse than none on its own samples"


@given(regressions(), regressions())
def test_the_picked_head_has_the_least_held_out_error(case, other):
    phi, y = case
    width = min(phi.shape[1], other[0].shape[1])
    path = heads.ridge_path(phi[:, :width], y)
    held, labels = other[0][:, :width], other[1]
    errors = [np.mean((held @ head - labels) ** 2) / np.mean(labels**2) for head in path.T]
    np.testing.assert_allclose(heads.risks(held, path, labels), errors, rtol=1e-6, atol=1e-12)
    picked = heads.select(held, path, labels)
    assert np.mean((held @ picked - labels) ** 2) / np.mean(labels**2) == pytest.approx(min(errors), rel=1e-6, abs=1e-12)


def test_the_choice_sees_the_held_out_data_only():
    """A signal in noise: the best penalty on the training samples is the smallest, on held-out ones it is not."""
    rng = np.random.default_rng(0)
    phi, held = rng.standard_normal((30, 25)), rng.standard_normal((500, 25))
    head = np.full(25, 0.2)
    y, labels = phi @ head + rng.standard_normal(30), held @ head + rng.standard_normal(500)
    path = heads.ridge_path(phi, y)
    assert np.argmin(heads.risks(phi, path, y)) == 0
    place = int(np.argmin(heads.risks(held, path, labels)))
    assert heads.PENALTIES[place] >= 0.1
    np.testing.assert_array_equal(heads.select(held, path, labels), path[:, place])


def test_single_precision_features_give_double_precision_heads():
    rng = np.random.default_rng(1)
    phi, y = rng.standard_normal((40, 5)).astype(np.float32), rng.standard_normal(40).astype(np.float32)
    path = heads.ridge_path(phi, y)
    assert path.dtype == np.float64
    np.testing.assert_array_equal(path, heads.ridge_path(phi.astype(np.float64), y.astype(np.float64)))


@pytest.mark.parametrize("phi", [np.zeros((4, 3)), np.full((4, 3), np.nan)], ids=["dead", "nan"])
def test_features_without_a_scale_are_named(phi):
    with pytest.raises((Diverged, np.linalg.LinAlgError), match=r"mean squared feature is|Eigenvalues did not converge"):
        heads.ridge_path(phi, np.ones(4))


# Labels on a line.


@st.composite
def networks(draw, widths):
    """(rows, biases, head, direction): rows near S*, in pairs of opposite sign as a symmetric start gives them, and a line in S*."""
    half, d = draw(widths), draw(st.integers(2, 10))
    rng = np.random.default_rng(draw(seeds))
    index = draw_index(d, draw(st.integers(1, min(d, 3))), rng)
    trained = rng.standard_normal((half, d)) @ (index @ index.T + 0.05 * np.eye(d))
    rows = np.concatenate([trained, -trained])
    return rows, rng.standard_normal(2 * half), rng.standard_normal(2 * half), index @ rng.standard_normal(index.shape[1])


@given(networks(st.integers(1, 32)))
def test_a_head_needs_exactly_as_many_labels_as_neurons(network):
    rows, biases, head, direction = network
    width = len(head)
    phi = heads.features(rows, biases, heads.line_inputs(rows, biases, direction, width))
    assert np.linalg.matrix_rank(phi) == width
    for m2 in (width - 1, width, width + 1):
        assert (head_error(rows, biases, head, direction, m2) <= 1e-6) == (m2 >= width)


@given(networks(st.integers(1, 10)), st.integers(1, 60))
def test_line_inputs_share_the_pieces_evenly(network, m2):
    """On the line, in order; no two between the same kinks while M2 <= L + 1, every piece used from there on."""
    rows, biases, _, direction = network
    x = heads.line_inputs(rows, biases, direction, m2)
    t = x @ direction / (direction @ direction)
    np.testing.assert_allclose(x, np.outer(t, direction), atol=1e-9 * np.max(np.abs(x)))
    assert np.all(np.diff(t) > 0)
    kinks = np.sort(-biases / (rows @ direction))
    pieces = np.bincount(np.searchsorted(kinks, t), minlength=len(kinks) + 1)
    if m2 <= len(kinks) + 1:
        assert pieces.max() == 1
    else:
        assert pieces.min() >= 1
        assert pieces.max() - pieces.min() <= 1


def test_a_piece_without_a_live_neuron_is_the_middle_one_and_left_out():
    """Two pairs that all open outwards: at 0 every feature is 0, so an input there would be a label lost."""
    rows, biases, direction = np.array([[1.0], [2.0], [-1.0], [-2.0]]), np.array([-1.0, -3.0, -0.5, -2.5]), np.array([1.0])
    assert not heads.features(rows, biases, np.zeros((1, 1))).any()
    for m2, rank in ((4, 4), (5, 4)):
        phi = heads.features(rows, biases, heads.line_inputs(rows, biases, direction, m2))
        assert np.linalg.matrix_rank(phi) == rank
        assert np.sum(~phi.any(axis=1)) == m2 - 4


def test_gaussian_inputs_need_more_than_one_label_a_neuron():
    """Contrast, and why the law of L labels is one about line inputs: neurons that are always on are dependent on Gaussian inputs."""
    width, failed = 40, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        index = draw_index(16, 2, rng)
        rows, biases, head = rng.standard_normal((width, 16)) @ index @ index.T, rng.standard_normal(width), rng.standard_normal(width)
        phi = heads.features(rows, biases, rng.standard_normal((2 * width, 16)))
        failed += np.linalg.norm(heads.least_norm_head(phi, phi @ head) - head) > 0.01 * np.linalg.norm(head)
        assert head_error(rows, biases, head, index @ rng.standard_normal(2), width) <= 1e-6
    assert failed >= 8


@given(regressions())
def test_the_least_norm_head_is_the_one_of_the_pseudo_inverse(case):
    phi, y = case
    head = heads.least_norm_head(phi, y)
    condition = np.linalg.cond(phi[:, : np.linalg.matrix_rank(phi)])
    np.testing.assert_allclose(head, np.linalg.pinv(phi) @ y, atol=1e-11 * condition**2 * (1 + np.linalg.norm(head)))


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match="at least one label: M2=0"):
        heads.line_inputs(np.eye(2), np.ones(2), np.ones(2), 0)
