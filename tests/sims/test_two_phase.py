"""Two-phase distillation against its direct formulas, central differences, one autograd graph, and negative controls."""

import array_api_compat.numpy as np_compat
import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sims import two_phase
from sims.arrays import GaussianStream, child
from sims.student import Student
from sims.two_phase import (
    StreamedLoss,
    erased_step,
    fit_residual,
    matching_gradient,
    performance_gradient,
    retrained_rows,
    teacher_rows,
)
from tests.oracles import dense_gradient, relative_error, to_torch, two_layer_loss
from tests.strategies import KINK_MARGIN, generators, models, seeds
from theory import two_layer
from theory.distill.inner_optim import SGD
from theory.distill.problem import Diverged
from theory.multi_index import draw_model


def cosine(a, b):
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


@st.composite
def samples(draw, least=1):
    """(model, stream, x, y): a teacher, a stream of a few samples in chunks, and the same samples at once."""
    model = draw(models())
    n, chunk = draw(st.integers(least + model.d, 40 + model.d)), draw(st.integers(1, 50))
    stream = GaussianStream(np.random.SeedSequence(draw(seeds)), n, model.d, chunk=chunk)
    x, xi = stream.head(n)
    return model, stream, x, model.labels(x, xi)


@given(samples(least=2))
def test_least_squares_residuals_are_orthogonal_to_constants_and_inputs(case):
    model, stream, x, y = case
    residual = fit_residual(model, stream, "ols")(x, y)
    padded = np.column_stack([np.ones(len(x)), x])
    # Rounding grows with the condition of the normal equations, which a handful of samples may drive up.
    rounding = 1e-14 * np.linalg.cond(padded) ** 2 * np.max(np.abs(y)) * len(x)
    assert np.max(np.abs(padded.T @ residual / len(x))) <= rounding
    np.testing.assert_allclose(residual, y - padded @ np.linalg.lstsq(padded, y, rcond=None)[0], atol=rounding)


def test_residuals_of_a_large_sample_meet_the_assumption():
    """A12 at the sizes of an experiment, linear part included: 1e-8 in float64."""
    model = draw_model(16, 2, "linear-quadratic", np.random.default_rng(0), noise=0.5)
    stream = GaussianStream(np.random.SeedSequence(1), 4096, 16, chunk=1000)
    x, xi = stream.head(4096)
    residual = fit_residual(model, stream, "ols")(x, model.labels(x, xi))
    assert abs(residual.mean()) < 1e-8
    assert np.linalg.norm(x.T @ residual / len(x)) < 1e-8
    other = fit_residual(model, stream, "one-shot")(x, model.labels(x, xi))
    assert np.linalg.norm(x.T @ other / len(x)) > 1e-3, "one-shot removal leaves a part of the linear term"


@given(samples())
def test_the_other_removals(case):
    model, stream, x, y = case
    once = fit_residual(model, stream, "one-shot")
    assert once.alpha == pytest.approx(y.mean(), abs=1e-12 * np.max(np.abs(y)))
    np.testing.assert_allclose(once.beta, x.T @ y / len(x), atol=1e-12 * np.max(np.abs(y)) * len(x))
    np.testing.assert_array_equal(fit_residual(model, stream, "none")(x, y), y)


def test_removals_that_cannot_be_are_refused():
    model = draw_model(4, 2, "cubic", np.random.default_rng(0))
    with pytest.raises(ValueError, match="N > d \\+ 1 samples: N=5, d=4"):
        fit_residual(model, GaussianStream(np.random.SeedSequence(0), 5, 4), "ols")
    with pytest.raises(ValueError, match="unknown preprocessing 'pca'; known: ols, one-shot, none"):
        fit_residual(model, GaussianStream(np.random.SeedSequence(0), 9, 4), "pca")


@given(samples(), st.integers(1, 4), generators, st.sampled_from(["one-shot", "none"]))
def test_teacher_rows_are_the_direct_sum_and_the_network_s_gradient(case, half, rng, method):
    model, stream, x, y = case
    residual = fit_residual(model, stream, method)
    theta = Student(model.d, 2 * half).init(rng)
    a, w, _ = theta
    rows = teacher_rows(model, stream, residual, w[:half])
    direct = np.zeros_like(rows)
    for x_n, y_n in zip(x, residual(x, y), strict=True):
        for i in range(half):
            direct[i] += y_n * x_n * (w[i] @ x_n >= 0) / len(x)
    scale = np.max(np.abs(y)) * np.max(np.abs(x)) * len(x)
    np.testing.assert_allclose(rows, direct, atol=1e-13 * scale)
    gradient = two_layer.gradient(theta, (x, residual(x, y)))[1]
    np.testing.assert_allclose(gradient, -a[:, None] * np.concatenate([rows, rows]), atol=1e-13 * scale)


def test_a_gate_is_open_on_its_boundary():
    x, w, y = np.array([[1.0]]), np.array([[0.0], [-1.0], [2.0]]), np.array([3.0])
    for xp in (np_compat, array_api_strict):
        moved = (xp.asarray(part) for part in (x, w, y, np.empty((1, 3))))
        np.testing.assert_array_equal(np.asarray(two_phase._gate_weights(xp, *moved)), [[3.0, 0.0, 3.0]])


# One matching step.


@st.composite
def matchings(draw):
    """(student, starts, distinct rows of all starts, points) of any small shape, no gate near its boundary."""
    d, half, j, m1 = (draw(st.integers(1, high)) for high in (4, 4, 3, 5))
    rng = draw(generators)
    student = Student(d, 2 * half)
    starts = tuple(student.init(rng) for _ in range(j))
    rows, x = rng.standard_normal((j * half, d)), rng.standard_normal((m1, d))
    assume(min(float(np.min(np.abs(x @ w.T))) for _, w, _ in starts) > KINK_MARGIN)
    return student, starts, rows, x


def direct_matching(student, starts, rows, x, self_term):
    """-(L/M1) [D_m - self_term (1/M1) sum_k K_mk x_k], means over starts, neuron by neuron."""
    half, (m1, d) = student.width // 2, x.shape
    width, total = student.width, np.zeros((len(x), student.d))
    for j, (_, w, _) in enumerate(starts):
        g = np.concatenate([rows[j * half : (j + 1) * half]] * 2)
        for m in range(m1):
            pull, push = np.zeros(d), np.zeros(d)
            for i in range(width):
                gate = w[i] @ x[m] >= 0
                pull += g[i] * gate / width
                for k in range(m1):
                    push += gate * (w[i] @ x[k] >= 0) * x[k] / width / m1
            total[m] -= width / m1 * (pull - self_term * push) / len(starts)
    return total


@given(matchings())
def test_matching_gradients_are_the_closed_forms(case):
    student, starts, rows, x = case
    for distance, self_term in (("inner_product", 0.0), ("squared", 1.0)):
        mine = matching_gradient(student, starts, rows, x, distance)
        np.testing.assert_allclose(mine, direct_matching(student, starts, rows, x, self_term), atol=1e-12 * (1 + np.max(np.abs(rows))))


def direct_loss(distance, student, starts, rows, x):
    """The mean over starts of dist({-a_i s_i}, {-a_i g_i}), s_i = (1/M1) sum_m x_m 1{w_i.x_m >= 0}, with the product of the outputs and
    the gates left in: f(x) is zero at a symmetric start, its derivative in x too.
    """
    half, value = student.width // 2, 0.0
    for j, (a, w, _) in enumerate(starts):
        g = -a[:, None] * np.concatenate([rows[j * half : (j + 1) * half]] * 2)
        s = -a[:, None] * ((x @ w.T >= 0).T @ x) / len(x)
        if distance == "squared":
            value += 0.5 * np.sum((s - g) ** 2)
        elif distance == "inner_product":
            value -= np.sum(s * g)
        else:
            sizes = np.linalg.norm(s, axis=1) * np.linalg.norm(g, axis=1)
            live = sizes > 0
            value += np.sum(1 - np.sum(s * g, axis=1)[live] / sizes[live])
    return value / len(starts)


@given(matchings())
def test_matching_gradients_are_central_differences(case):
    student, starts, rows, x = case
    for distance in two_phase.DISTANCES:
        mine = matching_gradient(student, starts, rows, x, distance)
        (numeric,) = dense_gradient(lambda s, kind=distance: direct_loss(kind, student, starts, rows, s[0]), (x,))
        np.testing.assert_allclose(mine, numeric, atol=1e-6 * (1 + np.max(np.abs(numeric))))


@pytest.fixture(scope="module")
def scene():
    """A task with a student of which real and distilled gradients are of one order."""
    d, half, starts = 8, 10, 3
    model = draw_model(d, 2, "cubic", np.random.default_rng(0))
    stream = GaussianStream(np.random.SeedSequence(1), 2000, d, chunk=512)
    residual = fit_residual(model, stream)
    student = Student(d, 2 * half)
    rng = np.random.default_rng(2)
    theta = tuple(student.init(rng) for _ in range(starts))
    rows = teacher_rows(model, stream, residual, np.concatenate([w[:half] for _, w, _ in theta]))
    return model, stream, residual, student, theta, rows, rng.standard_normal((5, d))


def test_performance_matching_is_gradient_matching_at_a_small_inner_step(scene):
    """1 - cosine falls at least in proportion to the inner step (its square, once the step is small); the scale is the inner step."""
    model, stream, residual, student, starts, rows, x = scene
    reference = matching_gradient(student, starts, rows, x, "inner_product")
    loss = StreamedLoss(model, stream, residual)
    steps = (0.01, 0.001, 0.0001)
    found = [performance_gradient(student, starts, loss, x, lr) for lr in steps]
    gaps = [1 - cosine(g, reference) for g in found]
    assert gaps[0] > 0.1, "a large step is another objective"
    assert np.all(np.diff(np.log10(gaps)) <= -0.95), gaps
    assert gaps[-1] < 1e-4
    assert np.linalg.norm(found[-1] / steps[-1] - reference) < 0.02 * np.linalg.norm(reference)


def test_the_streamed_loss_is_that_of_all_samples_at_once(scene):
    model, stream, residual, _, starts, _, _ = scene
    theta = tuple(part + 0.1 for part in starts[0])
    x, xi = stream.head(stream.n)
    value, gradient = StreamedLoss(model, stream, residual).loss_and_gradient(theta, None)
    expected, direct = two_layer.loss_and_gradient(theta, (x, residual(x, model.labels(x, xi))))
    assert value == pytest.approx(expected, rel=1e-12)
    assert relative_error(gradient, direct) <= 1e-12


@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_performance_matching_is_one_autograd_graph(scene, lr):
    model, stream, residual, student, starts, _, x = scene
    mine = performance_gradient(student, starts, StreamedLoss(model, stream, residual), x, lr)
    inputs, noise = stream.head(stream.n)
    real = to_torch((inputs, residual(inputs, model.labels(inputs, noise))))
    points = torch.tensor(x, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for theta in starts:
        a, w, b = to_torch(theta)
        w.requires_grad_()
        inner = two_layer_loss((a, w, b), (points, torch.ones(len(x), dtype=torch.float64)))
        (step,) = torch.autograd.grad(inner, w, create_graph=True)
        total = total + two_layer_loss((a, w - lr * step, b), real) / len(starts)
    (oracle,) = torch.autograd.grad(total, points)
    assert relative_error((mine,), (oracle,)) <= 1e-10


# The step and the retraining.


@given(generators, st.integers(1, 5), st.integers(1, 4))
def test_an_erased_step_goes_down_the_gradient_at_norm_one(rng, m1, d):
    gradient = rng.standard_normal((m1, d))
    points = erased_step(gradient)
    assert np.mean(np.sum(points**2, axis=1)) == pytest.approx(1.0, rel=1e-12)
    assert cosine(points, gradient) == pytest.approx(-1.0, abs=1e-12)
    # SGD whose weight decay is one over its step size, from any start.
    moved = SGD(2.0, weight_decay=0.5).step((rng.standard_normal((m1, d)),), (), 0, (gradient,))[0][0]
    assert cosine(points, moved) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("gradient", [np.zeros((2, 3)), np.array([[1.0, np.nan]]), np.full((1, 2), 1e200)], ids=["zero", "nan", "overflow"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_step_without_direction_is_named(gradient):
    with pytest.raises(Diverged, match="distilled points: root-mean-square norm is"):
        erased_step(gradient)


@given(matchings(), st.floats(0.1, 10.0), st.floats(0.1, 5.0))
def test_retrained_rows_are_one_decayed_step_of_the_shared_optimiser(case, lr, row_norm):
    student, starts, _, x = case
    theta, s = starts[0], (x, np.ones(len(x)))
    problem = two_phase.RowsOnly(student)
    gradient = problem.gradient(theta, s, None)
    assume(np.linalg.norm(gradient[1]) > 1e-3)
    assert not gradient[0].any()
    assert not gradient[2].any()
    rows = retrained_rows(student, theta, x, row_norm, reflected=False)
    assert np.sqrt(np.mean(np.sum(rows**2, axis=1))) == pytest.approx(row_norm, rel=1e-12)
    stepped = SGD(lr, weight_decay=1 / lr).step(theta, (), 0, gradient)[0][1]
    assert cosine(rows, stepped) == pytest.approx(1.0, abs=1e-9)
    direct = theta[0][:, None] * ((x @ theta[1].T >= 0).T @ x)
    assert cosine(rows, direct) == pytest.approx(1.0, abs=1e-12)


@given(matchings())
def test_reflected_rows_have_half_a_sign_for_a_gate(case):
    """So the mean point drops out: a common shift along which every gate is open changes the plain rows alone."""
    student, starts, _, x = case
    a, w, _ = theta = starts[0]
    direct = a[:, None] * (np.sign(x @ w.T).T @ x)
    assume(np.linalg.norm(direct) > 1e-3)
    rows = retrained_rows(student, theta, x, 1.0, reflected=True)
    assert cosine(rows, direct) == pytest.approx(1.0, abs=1e-12)
    flipped = retrained_rows(student, theta, -x, 1.0, reflected=True)
    np.testing.assert_allclose(flipped, rows, atol=1e-12)


# What the points carry.


def split_points(link, method, seed=0, d=16, r=2, noise=0.0, m1=40):
    """The task, and the points distilled from two independent samples of it at the same starts, N = 16 d^2."""
    root = np.random.SeedSequence(seed)
    model = draw_model(d, r, link, np.random.default_rng(child(root, 0)), noise)
    student, rng = Student(d, 400), np.random.default_rng(child(root, 1))
    starts, x0 = (student.init(rng),), rng.standard_normal((m1, d))
    points = []
    for k in (2, 3):
        stream = GaussianStream(child(root, k), 16 * d * d, d)
        rows = teacher_rows(model, stream, fit_residual(model, stream, method), starts[0][1][:200])
        points.append(erased_step(matching_gradient(student, starts, rows, x0, "inner_product")))
    return model, points


def test_an_odd_link_leaves_no_trace_in_the_points():
    """Negative control: two samples of one task agree on the points of a quadratic link, and on nothing where E[Hess f*] = 0."""
    agreement = {}
    for link in ("quadratic", "odd"):
        agreement[link] = [cosine(*split_points(link, "ols", seed)[1]) for seed in range(8)]
    assert min(agreement["quadratic"]) > 0.8
    odd = np.array(agreement["odd"])
    assert np.max(np.abs(odd)) < 0.4
    assert abs(odd.mean()) < 4 * odd.std(ddof=1) / np.sqrt(len(odd))


def test_a_linear_part_is_removed_by_least_squares_and_spoils_the_points_otherwise():
    """Left in, E[y x] pulls every point along one direction; one-shot removal leaves its sampling noise, off S* too."""
    off, along, spread = {}, {}, {}
    for method in two_phase.PREPROCESSING:
        model, (points, _) = split_points("linear-quadratic", method, noise=0.2)
        inside, beta = points @ model.B, model.link.linear / np.linalg.norm(model.link.linear)
        values = np.linalg.svd(inside, compute_uv=False)
        off[method] = 1 - np.sum(inside**2) / np.sum(points**2)
        along[method] = np.median(np.abs(inside @ beta) / np.linalg.norm(inside, axis=1))
        spread[method] = values[1] / values[0]
    assert off["ols"] < 0.08
    assert off["one-shot"] > 4 * off["ols"]
    assert along["none"] > 0.98 > 0.95 > along["ols"]
    assert spread["none"] < 0.1 < 0.5 < spread["ols"]
