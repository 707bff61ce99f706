"""The learned step size: its gradient against one graph and differences, under sub-batches, warps and every optimiser; its limits."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sims.student import RealSample, Student
from tests.conformance import InnerProblemConformance, ProblemCase
from tests.oracles import one_graph, relative_error, to_torch, two_layer_loss
from tests.strategies import generators, optimisers, scales
from theory import two_layer
from theory.distill.adjoint import unroll
from theory.distill.distiller import Distiller, distil, meta_gradient, start
from theory.distill.inner_optim import SGD, Momentum
from theory.distill.leaves import Leaves, axpy, dot, norm
from theory.distill.matching import GradientMatching, PerformanceMatching
from theory.distill.outer import PerLeaf
from theory.distill.problem import Diverged, GuidedObjective
from theory.distill.progressive import distil_in_phases
from theory.distill.step_size import StepSizeMomentum, split, with_step_size
from theory.distill.truncation import FullWindow, Window

D, WIDTH, POINTS = 3, 6, 4


@dataclass(frozen=True, eq=False)
class Warped:
    """The two-layer student on a warped sub-batch of S: rows, drawn with replacement, times and plus drawn numbers."""

    batch: int = 3

    def init(self, rng: np.random.Generator) -> Leaves:
        return two_layer.gaussian_init(D, WIDTH, rng)

    def draw(self, rng: np.random.Generator):
        return rng.integers(POINTS, size=self.batch), rng.uniform(0.5, 1.5, (self.batch, D)), 0.2 * rng.standard_normal((self.batch, D))

    def seen(self, s: Leaves, xi) -> Leaves:
        rows, factor, shift = xi
        return s[0][rows] * factor + shift, s[1][rows]

    def gradient(self, theta: Leaves, s: Leaves, xi) -> Leaves:
        return two_layer.gradient(theta, self.seen(s, xi))

    def second_order(self, theta: Leaves, s: Leaves, xi, c: Leaves) -> tuple[Leaves, Leaves]:
        h_c, (in_x, in_y) = two_layer.second_order(theta, self.seen(s, xi), c)
        pulled = tuple(np.zeros_like(x) for x in s)
        np.add.at(pulled[0], xi[0], in_x * xi[1])
        np.add.at(pulled[1], xi[0], in_y)
        return h_c, pulled

    def mixed(self, theta: Leaves, s: Leaves, xi, c: Leaves) -> Leaves:
        return self.second_order(theta, s, xi, c)[1]


class TestWarped(InnerProblemConformance):
    @staticmethod
    @st.composite
    def cases(draw: st.DrawFn) -> ProblemCase:
        rng, problem = draw(generators), Warped()
        theta, s, xi = problem.init(rng), (rng.standard_normal((POINTS, D)), rng.standard_normal(POINTS)), problem.draw(rng)
        assume(np.min(np.abs(problem.seen(s, xi)[0] @ theta[1].T + theta[2])) > 1e-3)
        return ProblemCase(problem, theta, s, xi, lambda t, q, noise: two_layer.loss(t, problem.seen(q, noise)))


@dataclass(frozen=True, eq=False)
class Towards:
    """||theta - target||^2 from a given start: the smallest GuidedObjective."""

    first: Leaves
    target: Leaves

    def at(self, step: int) -> "Towards":
        return self

    def start(self, xi: object) -> Leaves:
        return self.first

    def draw(self, rng: np.random.Generator) -> None:
        return None

    def value_and_grad(self, theta: Leaves, s: Leaves, xi: object) -> tuple[float, Leaves, None]:
        gap = tuple(a - b for a, b in zip(theta, self.target, strict=True))
        return norm(gap) ** 2, tuple(2.0 * x for x in gap), None


def scene(rng: np.random.Generator, alpha: float) -> tuple[Warped, Towards, Leaves]:
    problem = Warped()
    s = with_step_size((rng.standard_normal((POINTS, D)), rng.standard_normal(POINTS)), alpha)
    return problem, Towards(problem.init(rng), problem.init(rng)), s


def noises_of(problem: Warped, seed: np.random.SeedSequence, steps: int) -> list:
    """The step noise that the meta-gradient draws."""
    rng = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2)))
    return [problem.draw(rng) for _ in range(steps)]


@given(rng=generators, inner=optimisers, steps=st.integers(1, 6), alpha=st.floats(0.02, 0.2))
def test_the_gradient_is_that_of_one_graph_in_data_labels_and_step_size(rng, inner, steps, alpha):
    """With sub-batches in which points repeat, warps that are replayed, and S's step size in place of the optimiser's own."""
    problem, objective, s = scene(rng, alpha)
    seed = np.random.SeedSequence(int(rng.integers(2**32)))
    noises = noises_of(problem, seed, steps)
    tape = unroll(problem, replace(inner, lr=alpha), s[:-1], objective.first, noises, Window(0, steps))
    assume(all(np.min(np.abs(problem.seen(s, e.xi)[0] @ e.state.theta[1].T + e.state.theta[2])) > 1e-6 for e in tape.entries))
    found = meta_gradient(problem, objective, Distiller(FullWindow(steps), inner, SGD(0.1), learn_step=True), s, seed)
    target = to_torch(objective.target)

    def loss(theta, data, xi):
        rows, factor, shift = (torch.from_numpy(x) for x in xi)
        return two_layer_loss(theta, (data[0][rows] * factor + shift, data[1][rows]))

    def distance(theta, _):
        return sum(((a - b) ** 2).sum() for a, b in zip(theta, target, strict=True))

    graph = one_graph(loss, distance, replace(inner, lr=alpha), s[:-1], objective.first, noises, 0, steps)
    assert found.value == pytest.approx(graph.value, rel=1e-12)
    assert relative_error(found.grad_s[:-1], graph.grad_s) < 1e-10
    assert abs(float(found.grad_s[-1]) - graph.grad_log_lr) < 1e-10 * max(abs(graph.grad_log_lr), norm(graph.grad_s), 1e-3)
    assert found.grad_s[-1].shape == ()


@given(rng=generators, inner=st.sampled_from([SGD(9.0), SGD(9.0, 0.05), Momentum(9.0, 0.5)]), steps=st.integers(1, 4))
def test_the_gradient_is_that_of_central_differences(rng, inner, steps):
    problem, objective, s = scene(rng, 0.1)
    distiller, seed = Distiller(FullWindow(steps), inner, SGD(0.1), learn_step=True), np.random.SeedSequence(7)
    noises = noises_of(problem, seed, steps)
    tape = unroll(problem, replace(inner, lr=0.1), s[:-1], objective.first, noises, Window(0, steps))
    assume(all(np.min(np.abs(problem.seen(s, e.xi)[0] @ e.state.theta[1].T + e.state.theta[2])) > 1e-3 for e in tape.entries))

    def value(moved: Leaves) -> float:
        return meta_gradient(problem, objective, distiller, moved, np.random.SeedSequence(7)).value

    found = meta_gradient(problem, objective, distiller, s, seed).grad_s
    rounding = 20 * np.finfo(float).eps * value(s) / 1e-6
    for k in range(3):
        v = tuple(rng.standard_normal(x.shape) if i == k else np.zeros(x.shape) for i, x in enumerate(s))
        up, down = (value(axpy(h, v, s)) for h in (1e-6, -1e-6))
        assert abs(float(dot(found, v)) - (up - down) / 2e-6) < 1e-7 * norm(found) * norm(v) + rounding


@given(rng=generators, steps=st.integers(1, 5), alpha=st.floats(0.01, 0.3))
def test_for_plain_sgd_it_is_the_sum_over_the_steps(rng, steps, alpha):
    """-alpha sum <lam_{t+1}, g_t>, lam from the run started at theta_{t+1}: the objective's gradient there, S held."""
    problem, objective, s = scene(rng, alpha)
    distiller, seed = Distiller(FullWindow(steps), SGD(1.0), SGD(0.1), learn_step=True), np.random.SeedSequence(3)
    noises = noises_of(problem, seed, steps)
    thetas = [objective.first]
    for xi in noises:
        thetas.append(tuple(p - alpha * g for p, g in zip(thetas[-1], problem.gradient(thetas[-1], s, xi), strict=True)))
    lam, total = objective.value_and_grad(thetas[-1], s, None)[1], 0.0
    for t in reversed(range(steps)):
        g = problem.gradient(thetas[t], s, noises[t])
        total -= alpha * sum(float(np.sum(a * b)) for a, b in zip(lam, g, strict=True))
        h_lam = problem.second_order(thetas[t], s, noises[t], lam)[0]
        lam = tuple(a - alpha * b for a, b in zip(lam, h_lam, strict=True))
    found = meta_gradient(problem, objective, distiller, s, seed)
    assert float(found.grad_s[-1]) == pytest.approx(total, rel=1e-10, abs=1e-12)


@given(alpha=scales(1e-30, 1e30))
def test_a_step_size_is_stored_as_its_logarithm_and_read_back(xp, alpha):
    data = (xp.zeros((2, 3)), xp.ones(2))
    s = with_step_size(data, alpha)
    assert all(a is b for a, b in zip(s[:-1], data, strict=True))
    assert (s[-1].shape, s[-1].dtype) == ((), data[0].dtype)
    seen, inner = split(s, Momentum(7.0, 0.3, 0.01))
    assert len(seen) == 2
    assert inner == Momentum(inner.lr, 0.3, 0.01)
    assert inner.lr == pytest.approx(alpha, rel=1e-5 if "32" in str(data[0].dtype) else 1e-12)


@pytest.mark.parametrize("steps", [1, 20])
def test_learning_the_step_size_alone_finds_the_least_objective(steps):
    """Data at rest (a vanishing rate), the step size free: it comes to rest where the objective, over a grid of sizes, is least."""
    rng = np.random.default_rng(1)
    student = Student(D, WIDTH, "gaussian")
    first = student.init(rng)
    data = (rng.standard_normal((POINTS, D)), rng.standard_normal(POINTS))
    target = unroll(student, SGD(0.05), data, first, [None] * steps, Window(0, steps)).end.theta
    s = with_step_size(data, 0.02)
    outer = PerLeaf((SGD(1e-12), SGD(1e-12), Momentum(0.3 / norm(tuple(a - b for a, b in zip(target, first, strict=True))) ** 2, 0.5)))
    distiller = Distiller(FullWindow(steps), SGD(1.0), outer, learn_step=True)
    *_, last = distil(student, Towards(first, target), distiller, start(distiller, s), 0, 60)
    assert math.exp(float(last.state.s[-1])) == pytest.approx(0.05, rel=1e-3)
    assert last.value < 1e-6


def test_a_step_size_that_leaves_the_positive_numbers_is_named():
    rng = np.random.default_rng(2)
    problem, objective, s = scene(rng, 0.1)
    for outside, words in ((800.0, "inf"), (-800.0, "0.0")):
        bad = (*s[:-1], np.asarray(outside))
        with pytest.raises(Diverged, match=rf"step size is exp\({outside}\) = {words}: lower the outer step size"):
            split(bad, SGD(0.1))
    distiller = Distiller(FullWindow(3), SGD(0.1), SGD(1e9), learn_step=True)
    run = distil(problem, objective, distiller, start(distiller, s), 0, 3)
    next(run)
    with pytest.raises(Diverged, match=r"^outer step 1: (the learned inner step size is exp|inner run diverged)"):
        next(run)


@pytest.mark.parametrize("alpha", [0.0, -0.1, math.inf, math.nan])
def test_bad_step_sizes_are_refused(alpha):
    with pytest.raises(ValueError, match=f"positive and finite: alpha={alpha}"):
        with_step_size((np.zeros((2, 2)),), alpha)


def test_what_has_no_step_size_to_learn_is_refused():
    rng = np.random.default_rng(0)
    problem, objective, s = scene(rng, 0.1)
    distiller = Distiller(FullWindow(2), SGD(0.1), SGD(0.1), learn_step=True)
    with pytest.raises(ValueError, match=r"last leaf has shape \(4,\): make S by with_step_size"):
        meta_gradient(problem, objective, distiller, s[:-1], np.random.SeedSequence(0))
    real = RealSample(rng.standard_normal((8, D)), rng.standard_normal(8))
    with pytest.raises(ValueError, match="no gradient in the inner step size"):
        meta_gradient(problem, GradientMatching(real), distiller, s, np.random.SeedSequence(0))
    for how, asked in ((distiller, PerformanceMatching(real)), (Distiller(FullWindow(2), SGD(0.1), SGD(0.1)), objective)):
        with pytest.raises(ValueError, match="2 phases with a learned one or given starts"):
            next(distil_in_phases((problem, problem), asked, how, (s, s), 0, 1))
    assert isinstance(objective, GuidedObjective)
    assert not isinstance(PerformanceMatching(real), GuidedObjective)


@given(rng=generators, lr=st.floats(1e-8, 1e-2), momentum=st.floats(0.0, 0.9), alpha=st.floats(1e-4, 1.0))
def test_its_outer_step_is_momentum_in_alpha_bounded_by_a_factor_of_two(rng, lr, momentum, alpha):
    rule, plain, slopes = StepSizeMomentum(lr, momentum), Momentum(lr, momentum), rng.standard_normal(5)
    leaf, slots = (np.asarray(math.log(alpha)),), StepSizeMomentum(lr, momentum).init((np.asarray(0.0),))
    for t, slope in enumerate(slopes):
        now = np.exp(leaf[0])
        wanted, velocity = plain.step((now,), slots, t, (np.asarray(slope),))
        leaf, slots = rule.step(leaf, slots, t, (np.asarray(slope * now),))
        assert np.exp(leaf[0]) == pytest.approx(np.clip(wanted[0], now / 2, 2 * now), rel=1e-12)
        assert slots[0][0] == pytest.approx(velocity[0][0], rel=1e-12)


@pytest.mark.parametrize("best", [0.3, 0.7])
def test_its_outer_step_finds_a_step_size_far_above_the_first_one(best: float):
    """L = 1 - 2 c x + x^2 with x = c alpha / a, least at alpha = a: the published rate of MTT at 10 images a class, from 0.001 on."""
    a, c = 0.016, math.sqrt(1.0 - best)
    rule, leaf = StepSizeMomentum(1e-5, 0.5), (np.asarray(math.log(1e-3)),)
    slots = rule.init(leaf)
    for t in range(400):
        x = c * np.exp(leaf[0]) / a
        leaf, slots = rule.step(leaf, slots, t, (np.asarray(2.0 * x * (x - c)),))
    assert np.exp(leaf[0]) == pytest.approx(a, rel=0.01)
